"""Every fault of Megatron's exporter and TensorRT-LLM's converters, and the test that shows what is done instead.

Tests of a fault that needs no reference are here; the others stand where their references and rules do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crossdock import delivery
from crossdock.errors import PlanError
from support import hf_models

# what the originals do -> module and test
FAULTS = {
    "the gate of a gated GPT is dropped": "test_references.test_a_gated_gpt_says_so",
    "biases of q, k and v are dropped": "test_config.test_biases_that_its_llama_lacks",
    "norms of gemma lack one": "test_references.test_one_is_added_to_the_norms_of_gemma_in_float32",
    "a falcon of 32 layers becomes one of the 7B style":
        "test_trtllm_faults.test_a_falcon_is_new_by_its_norms_not_its_layers",
    "layers are lost under uneven stages": "test_rules.test_uneven_stages_are_warned_of",
    "an odd vocabulary is padded wrongly": "test_references.test_the_vocabulary_is_the_models_not_the_padded_one",
    "ranks beyond the vocabulary": "test_rules.test_a_vocabulary_smaller_than_its_padding",
    "tied embeddings over stages or without parallel embedding":
        "test_rules.test_a_tied_head_is_left_out_only_where_the_loader_can_do_without",
    "heads and widths that do not divide": "test_trtllm_faults.test_what_does_not_divide_names_the_sizes_that_do",
    "float16 overflows to inf": "test_trtllm_faults.test_overflow_is_counted_and_must_be_allowed",
    "stray keys over more than ten ranks": "test_trtllm_faults.test_no_stray_keys_over_sixteen_ranks",
    "rows of K and V are wrong with fewer KV heads than ranks": "test_rules.test_llama",
    "norms of q and k are unknown": "test_rules.test_norms_of_q_and_k",
    "names of single experts are unknown": "test_sources.test_state_dicts",
    "the router is narrowed": "test_references.test_the_router_is_float32",
    "fp8 scales: aliases, uint8 tensors, stale scales": "test_fp8",
    "layernorm1p adds one in the dtype of the source":
        "test_references.test_one_is_added_to_zero_centred_layernorms_as_megatron_does",
}  # fmt: skip


def test_every_fault_has_a_test() -> None:
    for place in FAULTS.values():
        module, _, name = place.partition(".")
        found = import_module(module)
        assert not name or callable(getattr(found, name))


@pytest.mark.parametrize("layers", [2, 32])
@pytest.mark.parametrize("recipe", ["falcon", "falcon-new"])
def test_a_falcon_is_new_by_its_norms_not_its_layers(recipe: str, layers: int, tmp_path: Path) -> None:
    folder = hf_models.make_hf(recipe, tmp_path / "hf", num_hidden_layers=layers)
    delivery.run(delivery.plan(delivery.open(folder), "trtllm"), tmp_path / "out", workers=1)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["new_decoder_architecture"] is (recipe == "falcon-new")
    got = load_file(tmp_path / "out/rank0.safetensors")
    norms = {name.rpartition(".layers.1.")[2] for name in got if ".layers.1." in name and "norm" in name}
    new = {"mlp_layernorm.weight", "mlp_layernorm.bias"} if recipe == "falcon-new" else set()
    assert norms == {"input_layernorm.weight", "input_layernorm.bias"} | new


@pytest.mark.parametrize(
    ("overrides", "tp", "said", "fitting"),
    [
        ({}, 3, ("8 heads cannot be split over 3 ranks", "160 cannot be split over 3 ranks"), "1, 2, 4, 8"),
        ({"intermediate_size": 98}, 4, ("98 cannot be split over 4 ranks",), "1, 2"),
        ({"num_attention_heads": 12, "num_key_value_heads": 3, "hidden_size": 48, "intermediate_size": 144}, 2,
         ("3 heads cannot be split over 2 ranks", "KV heads must divide the ranks"), "1, 3, 6, 12"),
    ],
)  # fmt: skip
def test_what_does_not_divide_names_the_sizes_that_do(
    overrides: dict[str, int], tp: int, said: tuple[str, ...], fitting: str, tmp_path: Path,
    crossdock: Callable[..., Any],
) -> None:  # fmt: skip
    folder = hf_models.make_hf("llama", tmp_path / "hf", **overrides)
    answer = crossdock("export", folder, "--to", "trtllm", "--tp", str(tp), "-o", tmp_path / "out")
    assert answer.code == 3
    assert not (tmp_path / "out").exists()
    for text in (*said, f"tensor parallel sizes that fit this model: {fitting}"):
        assert text in " ".join(answer.stderr.split())
    checkpoint = delivery.open(folder)
    for size in range(1, 13):
        if str(size) in fitting.split(", "):
            delivery.plan(checkpoint, "trtllm", tp=size)
        else:
            with pytest.raises(PlanError, match="cannot be split"):
                delivery.plan(checkpoint, "trtllm", tp=size)


def test_overflow_is_counted_and_must_be_allowed(tmp_path: Path, crossdock: Callable[..., Any]) -> None:
    folder = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][5, 7:10] = (7e4, -1e5, 65504)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    words = ("export", folder, "--to", "trtllm", "--dtype", "fp16", "--tp", "2", "-o", tmp_path / "out")
    refused = crossdock(*words)
    assert refused.code == 1
    assert "2 values overflow float16" in refused.stderr
    assert "mlp.proj.weight" in refused.stderr
    assert "--allow-overflow" in refused.stderr
    assert not (tmp_path / "out").exists()
    said = crossdock(*words, "--allow-overflow").ok()
    assert "2" in said.stdout
    got = load_file(tmp_path / "out/rank0.safetensors")["transformer.layers.1.mlp.proj.weight"]
    assert np.array_equal(got[5, 7:10], np.array([np.inf, -np.inf, 65504], np.float16))


def test_no_stray_keys_over_sixteen_ranks(tmp_path: Path) -> None:
    """The originals' rank 1 of 16 holds rank 11's rows too, as `...weight.11.bin`: names end with its number."""
    folder = hf_models.make_hf("llama", tmp_path / "hf", num_attention_heads=16, num_key_value_heads=16, head_dim=4)
    delivery.run(delivery.plan(delivery.open(folder), "trtllm", tp=16), tmp_path / "out", workers=1)
    names = [set(load_file(tmp_path / f"out/rank{rank}.safetensors")) for rank in range(16)]
    assert all(name == names[0] for name in names)
    layer = {"input_layernorm", "post_layernorm", "attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj"}
    assert names[0] == {f"transformer.layers.{n}.{part}.weight" for n in range(3) for part in layer} | {
        "transformer.vocab_embedding.weight", "transformer.ln_f.weight", "lm_head.weight",
    }  # fmt: skip
