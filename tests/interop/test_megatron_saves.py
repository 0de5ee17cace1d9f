"""Checkpoints of Megatron's HybridModel and saves of today leave with Megatron's own logits; and a model saved as a
GPTModel, renamed as Megatron's conversion tool does, gives identical exports, however its pattern is cut over ranks."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from oracles.files import hf_hashes
from oracles.llama_engine import llama_logits
from oracles.megatron_state import global_state
from oracles.transformers_engine import transformers_logits
from support.megatron_writers import Ranks, simple_args, write_ranks, write_torch_dist

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
from family_checks import without_nextn

Checkpoint = Callable[[str], Path]
# how far transformers and llama.cpp may be from Megatron's logits: the delta rule and the scan add up in another order
SAVES = {
    "llamahybrid-v019-dist-tp2-bf16": (1e-4, 1e-4),
    "llama-v016-dist-interp-bf16": (1e-4, 1e-4),
    "llama-v019-fsdpdtensor-fp32": (1e-4, 1e-4),
    "qwen2moe-v019-dist-tp2ep2-bf16": (1e-4, 1e-4),
    "glm45-v019-dist-ep2pp2-mtp-bf16": (1e-4, 1e-4),
    "gptoss-v019-dist-tp2etp1-bf16": (1e-4, None),
    "qwen3next-v019-dist-tp2-bf16": (2e-4, 2e-4),
    "nemotronh-v019-dist-tp2-bf16": (1e-4, 1e-4),
    "gemma3-bridge062-dist-bf16": (1e-3, 5e-3),
}
LLAMA, MIXTRAL, DEEPSEEK = (
    "llama-v019-dist-tp2pp2-bf16", "mixtral-v019-dist-tp2ep2pp2-bf16", "deepseek-v019-dist-tp2pp2-fp32",
)  # fmt: skip
PATTERNS = {LLAMA: "*-*-*-*-", MIXTRAL: "*E*E*E*E", DEEPSEEK: "+-+E+E+E"}


@pytest.mark.parametrize("name", SAVES)
def test_engines_compute_megatrons_logits(name: str, tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = megatron_checkpoint(name)
    tokens, expected = np.load(root / "tokens.npy"), np.load(root / "logits.npy")
    in_transformers, in_llama_cpp = SAVES[name]
    crossdock.export(root, tmp_path / "hf", "hf", dtype="float32")
    assert np.abs(transformers_logits(without_nextn(tmp_path / "hf"), tokens) - expected).max() <= in_transformers
    if in_llama_cpp is None:
        with pytest.raises(crossdock.CrossdockError, match="truncate = false"):
            crossdock.export(root, tmp_path / "model.gguf", "gguf", dtype="f32")
        return
    crossdock.export(root, tmp_path / "model.gguf", "gguf", dtype="f32")
    assert np.abs(llama_logits(tmp_path / "model.gguf", tokens) - expected).max() <= in_llama_cpp


def as_hybrid(state: dict[str, Any]) -> dict[str, Any]:
    """GPT's names as gpt_hybrid_conversion.py makes them: attention i in layer 2i, its MLP in layer 2i + 1."""
    out = {}
    for key, tensor in state.items():
        layer = re.match(r"decoder\.layers\.(\d+)\.(.*)", key)
        if layer:
            second = layer[2].startswith(("mlp.", "pre_mlp_layernorm"))
            key = f"decoder.layers.{2 * int(layer[1]) + second}.{layer[2]}"
        out[key.replace("final_layernorm", "final_norm")] = tensor
    return out


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, megatron_checkpoint: Checkpoint) -> Callable[[str], Any]:
    """Hashes of the export of the GPTModel."""
    base = tmp_path_factory.mktemp("gpt")

    def hashes(name: str) -> Any:
        if not (base / name).exists():
            crossdock.export(megatron_checkpoint(name), base / name, "hf", dtype="float32")
        return hf_hashes(base / name), (base / name / "config.json").read_bytes()

    return hashes


def hybrid(root: Path, pattern: str) -> tuple[dict[str, Any], Namespace]:
    state, args = global_state(root)
    changes = {"num_layers": 8, "hybrid_layer_pattern": pattern, "moe_layer_freq": 1}
    return as_hybrid(state), Namespace(**simple_args(args, **changes))


def exported(root: Path, out: Path) -> Any:
    crossdock.export(root, out, "hf", dtype="float32")
    return hf_hashes(out), (out / "config.json").read_bytes()


@pytest.mark.parametrize("name", PATTERNS)
def test_torch_dist(name: str, tmp_path: Path, megatron_checkpoint: Checkpoint, expected: Callable[[str], Any]) -> None:
    state, args = hybrid(megatron_checkpoint(name), PATTERNS[name])
    root = write_torch_dist(tmp_path / "root", state, args, tp=2, parts=2, stacked=False)
    assert exported(root, tmp_path / "hf") == expected(name)


def fsdp_names(state: dict[str, Any]) -> dict[str, Any]:
    """Keys of fsdp_dtensor: gate and up apart as _w and _v, experts numbered in grouped weights."""
    out: dict[str, Any] = {}
    for key, tensor in state.items():
        key = re.sub(r"experts\.(\d+)\.(linear_fc[12])\.weight", r"experts.\2.weight\1", key)
        if "linear_fc1.weight" in key:
            out[f"{key}_w"], out[f"{key}_v"] = np.split(tensor, 2)
        else:
            out[key] = tensor
    return {f"model.module.{key}": tensor for key, tensor in out.items()}


def dcp_names(state: dict[str, Any]) -> dict[str, Any]:
    """Keys of torch_dcp: as the modules have them."""
    out = {re.sub(r"experts\.(\d+)\.(linear_fc[12])\.weight", r"experts.\2.weight\1", k): v for k, v in state.items()}
    return {f"model.{key}": tensor for key, tensor in out.items()}


@pytest.mark.parametrize("names", [fsdp_names, dcp_names], ids=["fsdp_dtensor", "torch_dcp"])
@pytest.mark.parametrize("name", [LLAMA, MIXTRAL])
def test_dcp_folders_that_torch_writes(
    name: str,
    names: Callable[[dict[str, Any]], dict[str, Any]],
    tmp_path: Path,
    megatron_checkpoint: Checkpoint,
    expected: Callable[[str], Any],
) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    state, args = global_state(megatron_checkpoint(name))
    saved = {key: torch.from_numpy(np.ascontiguousarray(tensor)) for key, tensor in names(state).items()}
    saved |= {"args": Namespace(**simple_args(args)), "iteration": 10, "checkpoint_version": 3.0}
    saved |= {"rng_state.(0, 0).0.torch_rng_state": torch.zeros(8, dtype=torch.uint8)}
    dcp.save(saved, checkpoint_id=tmp_path / "root/iter_0000010", no_dist=True)
    (tmp_path / "root/latest_checkpointed_iteration.txt").write_text("10")
    assert exported(tmp_path / "root", tmp_path / "hf") == expected(name)
    assert crossdock.open(tmp_path / "root/iter_0000010", format="megatron").config.num_hidden_layers == 4
    with pytest.raises(crossdock.CrossdockError, match="pass the run's folder"):
        crossdock.open(tmp_path / "root/iter_0000010")


WHOLE = ((tuple(range(8)),),)
RANKS = {
    "tp2": (LLAMA, "*-*-*-*-", Ranks(WHOLE, tp=2)),
    "pp2-without-segments": (LLAMA, "*-*-*-*-", Ranks((((0, 1, 2, 3),), ((4, 5, 6, 7),)), tp=2)),
    "pp2-cut-through-a-layer": (LLAMA, "*-*|-*-*-", Ranks((((0, 1, 2),), ((3, 4, 5, 6, 7),)), tp=2)),
    "pp2vpp2": (LLAMA, "*|-*-|*|-*-", Ranks((((0,), (4,)), ((1, 2, 3), (5, 6, 7))))),
    "mtp-part": (LLAMA, "*-*-|*-*-/*-", Ranks((((0, 1, 2, 3),), ((4, 5, 6, 7),)))),
    "moe-tp2ep2pp2": (MIXTRAL, "*E*|E*E*E", Ranks((((0, 1, 2),), ((3, 4, 5, 6, 7),)), tp=2, ep=2, experts="te")),
    "moe-local-ep4": (MIXTRAL, "*E*E*E*E", Ranks(WHOLE, ep=4)),
    "mla-pp2": (DEEPSEEK, "+-+|E+E+E", Ranks((((0, 1, 2),), ((3, 4, 5, 6, 7),)), ep=2, experts="te")),
}


@pytest.mark.parametrize("layout", RANKS)
def test_rank_files(
    layout: str, tmp_path: Path, megatron_checkpoint: Checkpoint, expected: Callable[[str], Any]
) -> None:
    name, pattern, how = RANKS[layout]
    state, args = hybrid(megatron_checkpoint(name), pattern)
    root = write_ranks(tmp_path / "root", state, args, how)
    assert exported(root, tmp_path / "hf") == expected(name)


def test_a_pattern_of_another_model_is_caught_by_name(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    state, args = hybrid(megatron_checkpoint(LLAMA), "*--**-*-")
    root = write_torch_dist(tmp_path / "shuffled", state, args, stacked=False)
    with pytest.raises(crossdock.CrossdockError, match="hybrid_layer_pattern"):
        crossdock.open(root)
    state, args = hybrid(megatron_checkpoint(DEEPSEEK), "+E+-+E+E")
    root = write_torch_dist(tmp_path / "shifted", state, args, stacked=False)
    with pytest.raises(crossdock.CrossdockError, match="layers"):
        crossdock.open(root)


def test_scaled_rope_of_a_hybrid_model_is_told(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    """hybrid_model.py up to d98e8a6 gives RotaryEmbedding no rope_scaling."""
    state, args = hybrid(megatron_checkpoint(LLAMA), "*-*-*-*-")
    args.use_rope_scaling = True
    root = write_torch_dist(tmp_path / "root", state, args, stacked=False)
    assert any("takes no scaling of rope" in sentence for sentence in crossdock.open(root).described.notices)
    assert crossdock.open(root, set={"use_rope_scaling": "false"}).config.rope_type == "default"
