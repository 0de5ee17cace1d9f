"""Plain Megatron state dicts: the tensors of real checkpoints, gathered by torch, under every naming, with
TransformerConfig's keys instead of args. The oracle is the checkpoint itself, read from its own folder."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

import crossdock
from crossdock.errors import ConfigError, CrossdockError, UsageError
from crossdock.formats.megatron.root import find_folder

Tensors = dict[str, torch.Tensor]
STACKED = re.compile(r"decoder\.layers\.(?!\d)")
CONFIG: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "num_layers": lambda a: a["num_layers"],
    "hidden_size": lambda a: a["hidden_size"],
    "num_attention_heads": lambda a: a["num_attention_heads"],
    "num_query_groups": lambda a: a["num_query_groups"] if a["group_query_attention"] else a["num_attention_heads"],
    "ffn_hidden_size": lambda a: a["ffn_hidden_size"],
    "kv_channels": lambda a: a["kv_channels"],
    "normalization": lambda a: a["normalization"],
    "gated_linear_unit": lambda a: a["swiglu"],
    "activation": lambda a: "swiglu" if a["swiglu"] else "squared-relu" if a["squared_relu"] else "gelu",
    "bias_activation_fusion": lambda a: a["bias_gelu_fusion"],
    "add_bias_linear": lambda a: a["add_bias_linear"],
    "add_qkv_bias": lambda a: a["add_qkv_bias"],
    "qk_layernorm": lambda a: a["qk_layernorm"],
    "layernorm_epsilon": lambda a: a["norm_epsilon"],
    "layernorm_zero_centered_gamma": lambda a: a["apply_layernorm_1p"],
    "num_moe_experts": lambda a: a["num_experts"],
    "moe_router_topk": lambda a: a["moe_router_topk"],
    "moe_ffn_hidden_size": lambda a: a["moe_ffn_hidden_size"],
    "position_embedding_type": lambda a: a["position_embedding_type"],
    "max_position_embeddings": lambda a: a["max_position_embeddings"],
    "rotary_base": lambda a: a["rotary_base"],
    "rotary_percentage": lambda a: a["rotary_percent"],
    "share_embeddings_and_output_weights": lambda a: not a["untie_embeddings_and_output_weights"],
    "vocab_size": lambda a: a["vocab_size"],
}
HELPER = {"position_embedding_type", "max_position_embeddings", "rotary_base", "rotary_percentage", "activation",
          "share_embeddings_and_output_weights"}  # fmt: skip


def gathered(root: Path) -> Tensors:
    """The weights of a torch_dist folder, whole, by torch."""
    reader = FileSystemReader(find_folder(root, None).path)
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(("decoder.", "embedding.", "output_layer.")) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def per_layer(state: Tensors) -> Tensors:
    """`decoder.layers.x` [L, ...] as `decoder.layers.0.x`, ...; experts as modules hold them in memory."""
    out: Tensors = {}
    for name, tensor in state.items():
        if not STACKED.match(name):
            out[name] = tensor
            continue
        for layer, own in enumerate(tensor):
            key = STACKED.sub(f"decoder.layers.{layer}.", name)
            if ".experts.experts." in key:
                for expert, matrix in enumerate(own):
                    out[key.replace(".experts.experts.", f".experts.local_experts.{expert}.")] = matrix.clone()
            else:
                out[key] = own.clone()
    return out


def te_experts(state: Tensors) -> Tensors:
    """`local_experts.3.linear_fc1.weight` as TEGroupedMLP's `linear_fc1.weight3`."""
    return {re.sub(r"local_experts\.(\d+)\.(.*)", r"\2\1", name): tensor for name, tensor in state.items()}


NAMINGS: Mapping[str, Callable[[Tensors], Tensors]] = {
    "stacked": dict,
    "per_layer": per_layer,
    "te_experts": lambda state: te_experts(per_layer(state)),
    "prefixed": lambda state: {f"model.{name}": tensor for name, tensor in per_layer(state).items()},
}


def config_file(args: Mapping[str, Any], path: Path, *, case: bool) -> Path:
    keys: dict[str, Any] = {}
    for name, value in CONFIG.items():
        with contextlib.suppress(KeyError):  # no such arg in that version, or not for such models
            keys[name] = value(args)
    if case:  # the two parts of the exporter's settings
        helper = {k: v for k, v in keys.items() if k in HELPER}
        rest = {k: v for k, v in keys.items() if k not in HELPER}
        path.write_text(json.dumps({"model_type": "gpt", "transformer_config": rest, "helper": helper}))
    else:
        path.write_text(json.dumps(keys))
    return path


@pytest.mark.parametrize(
    ("name", "case", "naming"),
    [
        ("llama-v019-dist-tp2pp2-bf16", False, "stacked"),
        ("llama-v019-dist-tp2pp2-bf16", True, "prefixed"),
        ("gpt2-v019-dist-tp2-fp32", True, "per_layer"),
        ("mixtral-v019-dist-tp2ep2pp2-bf16", False, "stacked"),
        ("mixtral-v019-dist-tp2ep2pp2-bf16", True, "per_layer"),
        ("mixtral-v019-dist-tp2ep2pp2-bf16", False, "te_experts"),
        ("nemotron-v016-dist-tp2-onep-fp32", True, "stacked"),
        ("qwen3-v019-dist-tp2pp2-fp32", False, "per_layer"),
    ],
)
def test_the_same_model_as_the_checkpoint(
    name: str, case: bool, naming: str, tmp_path: Path, megatron_checkpoint: Callable[[str], Path]
) -> None:
    root = megatron_checkpoint(name)
    theirs = crossdock.open(root)
    state = NAMINGS[naming](gathered(root))
    file = tmp_path / ("state.pt" if case else "state.safetensors")
    if case:
        torch.save({"model": state, "iteration": 3, "optimizer": {"exp_avg": torch.zeros(3)}}, file)
    else:
        save_file(state, file)
    ours = crossdock.open(file, config=config_file(theirs.source.metadata, tmp_path / "config.json", case=case))
    assert ours.family.name == theirs.family.name
    report = crossdock.diff(theirs, ours)
    assert report.same, report
    assert ours.described.config == theirs.described.config


@pytest.mark.parametrize("given", ["gpt", None])
def test_model_types_of_megatron(given: str | None, tmp_path: Path, megatron_checkpoint: Callable[[str], Path]) -> None:
    """Megatron's `gpt` is several families here: the keys choose."""
    root = megatron_checkpoint("gpt2-v019-dist-tp2-fp32")
    save_file(gathered(root), tmp_path / "state.safetensors")
    config = config_file(crossdock.open(root).source.metadata, tmp_path / "config.json", case=False)
    assert crossdock.open(tmp_path / "state.safetensors", config=config, family=given).family.name == "gpt2"


def test_args_by_their_own_names_and_defaults(tmp_path: Path, megatron_checkpoint: Callable[[str], Path]) -> None:
    """A handful of args is enough where the rest is TransformerConfig's default."""
    root = megatron_checkpoint("llama-v019-dist-tp2pp2-bf16")
    theirs = crossdock.open(root)
    args = theirs.source.metadata
    save_file(gathered(root), tmp_path / "state.safetensors")
    names = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "swiglu",
             "normalization", "add_bias_linear", "rotary_base", "norm_epsilon", "vocab_size",
             "max_position_embeddings")  # fmt: skip
    (tmp_path / "args.json").write_text(json.dumps({name: args[name] for name in names}))
    ours = crossdock.open(tmp_path / "state.safetensors", config=tmp_path / "args.json")
    assert ours.described.config == theirs.described.config


def test_nothing_is_guessed(tmp_path: Path, megatron_checkpoint: Callable[[str], Path]) -> None:
    root = megatron_checkpoint("llama-v019-dist-tp2pp2-bf16")
    save_file(gathered(root), tmp_path / "state.safetensors")
    with pytest.raises(ConfigError, match="no configuration"):
        crossdock.open(tmp_path / "state.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 4, "normalization": "RMSNorm", "swiglu": True}))
    with pytest.raises(ConfigError) as error:
        crossdock.open(tmp_path / "state.safetensors", config=tmp_path / "config.json")
    said = str(error.value)
    for name in ("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings"):
        assert name in said
    keys = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "glu_interleaved_layout": 3}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    with pytest.raises(ConfigError, match="glu_interleaved_layout"):
        crossdock.open(tmp_path / "state.safetensors", config=tmp_path / "config.json", family="llama")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 1}))
    torch.save({"a": 1}, tmp_path / "empty.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    torch.save({"transformer.h.0.ln_1.weight": torch.zeros(4)}, tmp_path / "other.pt")
    for name in ("empty.pt", "broken.pt", "other.pt"):
        with pytest.raises(CrossdockError):
            crossdock.open(tmp_path / name, config=tmp_path / "config.json")


OWN = {
    "decoder.layers.{}.self_attention.linear_qkv.weight": "blocks.{}.attn.wqkv",
    "decoder.layers.{}.self_attention.linear_proj.weight": "blocks.{}.attn.wo",
    "embedding.word_embeddings.weight": "tok.weight",
}
RENAMES: Mapping[str, dict[str, str]] = {
    "placeholders": {
        "blocks.{layer}.attn.wqkv": "decoder.layers.{layer}.self_attention.linear_qkv.weight",
        "blocks.{layer}.attn.wo": "decoder.layers.{layer}.self_attention.linear_proj.weight",
        "tok.weight": "embedding.word_embeddings.weight",
    },
    "numbers left out": {
        "blocks.attn.wqkv": "decoder.layers.self_attention.linear_qkv.weight",
        "blocks.attn.wo": "decoder.layers.self_attention.linear_proj.weight",
        "tok.weight": "embedding.word_embeddings.weight",
    },
    "canonical tensors": {"blocks.{layer}.attn.wqkv": "attn_q attn_k attn_v", "blocks.attn.wo": "attn_o",
                          "tok.weight": "embed"},
    "the exporter's": {"blocks.attn.wqkv": "attention_qkv_weight", "tok.weight": "transformer.vocab_embedding.weight",
                       "blocks.attn.wo": "transformer.layers.attention.dense.weight"},
}  # fmt: skip


@pytest.fixture
def own_names(tmp_path: Path, megatron_checkpoint: Callable[[str], Path]) -> tuple[Path, Path, Path]:
    """(the original folder, its state dict with some own names, its configuration)"""
    root = megatron_checkpoint("llama-v019-dist-tp2pp2-bf16")
    state = per_layer(gathered(root))
    for old, new in OWN.items():
        state = {re.sub(re.escape(old).replace(r"\{\}", r"(\d+)"), new.replace("{}", r"\1"), k): v
                 for k, v in state.items()}  # fmt: skip
    save_file(state, tmp_path / "own.safetensors")
    config = config_file(crossdock.open(root).source.metadata, tmp_path / "config.json", case=False)
    return root, tmp_path / "own.safetensors", config


@pytest.mark.parametrize("how", RENAMES)
def test_own_layer_names(how: str, own_names: tuple[Path, Path, Path]) -> None:
    root, file, config = own_names
    with pytest.raises(CrossdockError):
        crossdock.open(file, config=config)
    ours = crossdock.open(file, config=config, rename=RENAMES[how])
    assert crossdock.diff(crossdock.open(root), ours).same
    assert any("blocks" in notice for notice in crossdock.plan(ours, "hf").warnings)


def test_wrong_renames(own_names: tuple[Path, Path, Path]) -> None:
    _, file, config = own_names
    with pytest.raises(UsageError, match=r"blocks\.attn\.wqvk.*\n.*blocks\.attn\.wqkv"):
        crossdock.open(file, config=config, rename={"blocks.attn.wqvk": "attn_o"})
    with pytest.raises(UsageError, match="the same name"):
        crossdock.open(file, config=config, rename={"tok.weight": "output_layer.weight"})
    with pytest.raises(UsageError, match="needs"):
        crossdock.open(file, config=config, rename={"tok.weight": "decoder.layers.{layer}.x"})


def test_the_command_line_takes_renames(
    own_names: tuple[Path, Path, Path], crossdock: Callable[..., Any], tmp_path: Path
) -> None:
    _, file, config = own_names
    words = [word for pair in RENAMES["the exporter's"].items() for word in ("--rename", "=".join(pair))]
    crossdock("export", file, "--config", config, *words, "--to", "gguf", "-o", tmp_path / "m.gguf").ok()
    crossdock("verify", tmp_path / "m.gguf", "--against", file, "--config", config, *words).ok()
    wrong = crossdock("plan", file, "--config", config, "--rename", "nothing=embed", "--to", "hf")
    assert wrong.code == 2
    assert "nothing" in wrong.stderr
