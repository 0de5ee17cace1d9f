"""Megatron-Bridge's run_config.yaml, written by PyYAML as Bridge does; the oracle is the same checkpoint with args."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import crossdock
from crossdock.errors import ConfigError, FormatError
from crossdock.formats.megatron.root import find_folder
from crossdock.io.yaml import read_section

LLAMA, NEMOTRON = "llama-v016-dist-tp4-perlayer-fp32", "nemotron-v016-dist-tp2-onep-fp32"


def function(name: str) -> dict[str, Any]:
    return {"_target_": name, "_call_": False}


def model_section(args: Mapping[str, Any], provider: str = "gpt_provider.GPTModelProvider") -> dict[str, Any]:
    """What Bridge's provider says of a model with these args: TransformerConfig's names, callables by `_target_`."""
    act = "torch.nn.functional.silu" if args["swiglu"] else "megatron.core.activations.squared_relu"
    return {
        "_target_": f"megatron.bridge.models.{provider}",
        "activation_func": function(act),
        "activation_func_clamp_value": None,
        "attention_backend": {"_args_": [5], "_call_": True, "_target_": "megatron.core.transformer.enums.AttnBackend"},
        "add_bias_linear": args["add_bias_linear"],
        "add_qkv_bias": args["add_qkv_bias"],
        "bias_activation_fusion": True,
        "bf16": False,
        "embedding_init_method": {
            "_args_": [], "_partial_": True, "_target_": "torch.nn.init.normal_", "mean": 0.0, "std": 0.02,
        },
        "ffn_hidden_size": args["ffn_hidden_size"],
        "fp16": False,
        "gated_linear_unit": args["swiglu"],
        "hidden_size": args["hidden_size"],
        "kv_channels": args["kv_channels"],
        "layernorm_epsilon": args["norm_epsilon"],
        "layernorm_zero_centered_gamma": args["apply_layernorm_1p"],
        "make_vocab_size_divisible_by": 128,
        "moe_router_topk": 2,
        "mtp_num_layers": None,
        "multi_latent_attention": False,
        "normalization": args["normalization"],
        "num_attention_heads": args["num_attention_heads"],
        "num_layers": args["num_layers"],
        "num_moe_experts": None,
        "num_query_groups": args["num_query_groups"] if args["group_query_attention"] else args["num_attention_heads"],
        "params_dtype": function("torch.float32"),
        "position_embedding_type": args["position_embedding_type"],
        "qk_layernorm": False,
        "recompute_modules": ["core_attn"],
        "rope_scaling": False,
        "rope_scaling_factor": 1.0,
        "rotary_base": args["rotary_base"],
        "rotary_percent": args["rotary_percent"],
        "seq_len_interpolation_factor": None,
        "seq_length": args["max_position_embeddings"],
        "share_embeddings_and_output_weights": not args["untie_embeddings_and_output_weights"],
        "timers": {"_call_": True, "_target_": "megatron.core.timers.Timers"},
        "transformer_layer_spec": function("megatron.bridge.models.gpt_provider.default_layer_spec"),
        "vocab_size": args["vocab_size"],
        "window_size": None,
    }  # fmt: skip


@pytest.fixture
def bridge(
    tmp_path: Path, megatron_checkpoint: Callable[[str], Path]
) -> Callable[..., tuple[crossdock.Checkpoint, Path]]:
    """(the checkpoint as Megatron saved it, its copy as Bridge saves it: without args, with run_config.yaml)"""

    def make(name: str, change: Callable[[dict[str, Any]], object] = lambda model: None, **more: Any) -> Any:
        theirs = crossdock.open(megatron_checkpoint(name))
        folder = tmp_path / "iter_0000010"
        shutil.copytree(find_folder(megatron_checkpoint(name), None).path, folder)
        (folder / "common.pt").unlink()
        model = model_section(theirs.source.metadata, **more)
        change(model)
        sections = {"checkpoint": {"save": "/x"}, "model": model, "train": {"exit_signal": function("a.b")}}
        (folder / "run_config.yaml").write_text(yaml.safe_dump(sections))
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
        return theirs, tmp_path

    return make


def nested(model: dict[str, Any]) -> None:
    """The form of Bridge's builders: TransformerConfig's fields in a mapping of their own, short names of functions."""
    outer = ("share_embeddings_and_output_weights", "rotary_base", "rotary_percent", "seq_length", "vocab_size",
             "position_embedding_type", "make_vocab_size_divisible_by", "rope_scaling",
             "rope_scaling_factor")  # fmt: skip
    inner = {key: model.pop(key) for key in list(model) if key not in outer and key != "_target_"}
    inner["activation_func"] = inner["activation_func"]["_target_"].rpartition(".")[2]
    model |= {"_target_": "megatron.bridge.models.gpt.model_config.BridgeGPTModelConfig", "transformer": inner,
              "_builder_": "megatron.bridge.models.gpt.gpt_builder.GPTModelBuilder"}  # fmt: skip


@pytest.mark.parametrize("form", ["provider", "builder"])
@pytest.mark.parametrize("name", [LLAMA, NEMOTRON])
def test_the_same_model_as_by_args(name: str, form: str, bridge: Any) -> None:
    theirs, root = bridge(name, nested if form == "builder" else lambda model: None)
    ours = crossdock.open(root)
    assert ours.family.name == theirs.family.name
    assert ours.described.config == theirs.described.config
    assert "run_config.yaml" in ours.described.origins["hidden_size"]
    assert crossdock.diff(theirs, ours).same


def test_rope_of_llama_3_1_in_both_spellings(bridge: Any) -> None:
    _, root = bridge(LLAMA, lambda model: model.update(rope_scaling=True, rope_scaling_factor=32.0))
    new = crossdock.open(root).config
    file = root / "iter_0000010" / "run_config.yaml"
    older = "  scale_factor: 32.0\n  low_freq_factor: 1.0\n  high_freq_factor: 4.0\n  old_context_len: 8192\n"
    text = re.sub(r"  rope_scaling: .*\n", older, re.sub(r"  rope_scaling_factor.*\n", "", file.read_text()))
    file.write_text(text)
    assert new.rope_type == "llama3"
    assert new.rope_scaling == {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 8192}  # fmt: skip
    assert crossdock.open(root).config == new
    file.write_text(text.replace("old_context_len: 8192", "old_context_len: 4096"))
    with pytest.raises(ConfigError, match="old_context_len"):
        crossdock.open(root)


@pytest.mark.parametrize(("change", "said"), [
    ({"_target_": "megatron.bridge.models.gemma.gemma3_provider.Gemma3ModelProvider"}, "gemma3_provider"),
    ({"_target_": "somebody.own_models.Provider"}, "own_models"),
    ({"activation_func": {"_target_": "megatron.core.fusions.fused_bias_geglu.quick_gelu", "_call_": False}}, "gelu"),
    ({"softmax_type": "learnable"}, "softmax_type"),
    ({"attention_of_tomorrow": 3}, "attention_of_tomorrow"),
])  # fmt: skip
def test_what_would_be_another_model_is_refused(change: dict[str, Any], said: str, bridge: Any) -> None:
    _, root = bridge(LLAMA, lambda model: model.update(change))
    with pytest.raises(ConfigError, match=said):
        crossdock.open(root)


@pytest.mark.parametrize("text", [
    "train:\n  a: 1\n", "model: 3\n", "model:\n", "model:\n  a: 1\n   b: 2\n", "model:\n  a: [1, 2\n",
    "model:\n  a: !!python/object/apply:os.system [x]\n",
    "model:\n  b: &b {x: 1}\n  a: {<<: *b}\n", "model:\n  a: 1\nmodel:\n  a: 2\n",
    "model:\n  a: 1\n  a: 2\n",
    "model:\n  a: 'x\n", "model:\n  a: *b\n", "model:\n" + "".join("  " * n + "  a:\n" for n in range(60)),
    "model:\n  a\n", "model:\n  a: &a [*a]\n  b: 2020-13-45\n", b"model:\n  a: \xff\n",
])  # fmt: skip
def test_other_yaml_is_refused(text: str | bytes, bridge: Any) -> None:
    _, root = bridge(LLAMA)
    (root / "iter_0000010" / "run_config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=r"run_config\.yaml"):
        crossdock.open(root)


NAMES = st.from_regex(r"\A[a-z_][a-zA-Z0-9_]{0,20}\Z")
ODD = ["yes", "1e5", "1_0", "a: b", "# x", "- a", "x #y", "", '"', "a\nb", "  lead", "0x1f", "1:30", "~", "[]", "&a"]
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=120),
                   st.sampled_from(ODD))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=10
), min_size=1, max_size=4))  # fmt: skip
def test_what_pyyaml_writes_is_read(model: dict[str, Any]) -> None:
    text = yaml.safe_dump({"a": 1, "model": model, "z": [1]})
    assert read_section(text, "model", "file") == yaml.safe_load(text)["model"]


def test_anchors() -> None:
    shared = [1, {"x": "y"}]
    text = yaml.safe_dump({"model": {"a": shared, "b": shared}})
    assert "*id001" in text
    assert read_section(text, "model", "file") == {"a": shared, "b": shared}


LONG = 100_000
HOSTILE = {
    "a key with spaces inside": "model:\n  a" + " " * LONG + "b\n",
    "a key of one long word": "model:\n  " + "a" * LONG + ": 1\n",
    "flow lists in each other": "model:\n  a: " + "[" * LONG,
    "flow maps in each other": "model:\n  a: " + "{a: " * (LONG // 4),
    "lists in each other": "model:\n  " + "- " * (LONG // 2) + "1\n",
    "many items": "model:\n  a: [" + "1," * (LONG // 2) + "]\n",
    "an integer of many digits": "model:\n  a: " + "9" * LONG + "\n",
    "a number to the base of 60": "model:\n  a: 1" + ":1" * (LONG // 2) + "\n",
    "aliases that double": "model:\n  a0: &a0 [1]\n" + "".join(
        f"  a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 200)
    ),
    "merges that double": "model:\n  a0: &a0 {x: 1}\n" + "".join(
        f"  a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 200)
    ),
    "many anchors": "model:\n" + "".join(f"  a{n}: &b{n} 1\n" for n in range(LONG // 20)),
    "a quoted text without end": 'model:\n  a: "' + "x\n  " * (LONG // 4),
    "a block text": "model:\n  a: |\n" + "    x\n" * (LONG // 6),
    "comments": "model:\n  a: 1\n" + "# x\n" * (LONG // 4),
    "question marks": "model:\n  " + "? " * (LONG // 2),
    "colons": "model:\n  a" + ": " * (LONG // 2),
    "tabs": "model:\n  a:" + "\t" * LONG + "1\n",
    "documents": "model:\n  a: 1\n" + "---\n" * (LONG // 4),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_time_for_a_hostile_section_is_bounded(text: str) -> None:
    """Each takes about half a second at most; what grew with the square of the text took a quarter of a minute."""
    before = time.process_time()
    with contextlib.suppress(FormatError):
        read_section(text, "model", "file")
    assert time.process_time() - before < 8


def test_tags_of_other_sections_are_not_looked_at() -> None:
    text = "train: !!python/object/apply:os.system [x]\nmodel:\n  a: 1\n"
    assert read_section(text, "model", "file") == {"a": 1}
    with pytest.raises(FormatError, match="line 1"):
        read_section(text, "train", "file")
