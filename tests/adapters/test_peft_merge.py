"""Adapters merged on the way: the model that peft's own merge_and_unload makes, in whatever form it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from support.peft_adapters import adapted, logits_of

INSIDE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "every matrix of the layers": ("llama", {"target_modules": INSIDE}),
    "rslora": ("llama", {"target_modules": INSIDE, "use_rslora": True, "lora_alpha": 5}),
    "ranks and alphas by pattern": ("llama", {
        "target_modules": INSIDE, "rank_pattern": {"v_proj": 5, r"layers\.1\.mlp\.down_proj": 2},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 16, "(up|gate)_proj": 3},
    }),
    "some layers": ("llama", {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
    "embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "whole tensors beside": ("llama", {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"],
    }),
    "trained tokens": ("llama", {
        "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [7, 5, 6, 2], "lm_head": [9]},
    }),
    "trained tokens, tied": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [27, 1, 2]}),
    "trained biases": ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of wrapped layers": ("llama", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "DoRA": ("llama", {"target_modules": [*INSIDE, "lm_head"], "use_dora": True}),
    "DoRA and rslora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "use_rslora": True}),
    "a stack of experts": ("qwen3_moe", {
        "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }),
    "a stack of experts, one parameter": ("qwen3_moe", {
        "target_modules": ["v_proj"], "target_parameters": ["mlp.experts.down_proj"], "use_rslora": True,
    }),
    "a router": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
    "weights stored as [in, out]": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_merged_model_is_that_of_peft(name: str, adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    model, options = CASES[name]
    adapter = adapted(adapter_bases(model), tmp_path / "adapter", **options)
    wanted = logits_of(adapter_bases(model), adapter)
    assert np.abs(logits_of(adapter_bases(model)) - wanted).max() > 1e-2 * np.abs(wanted).max()
    checkpoint = crossdock.open(adapter, base=adapter_bases(model))
    crossdock.run(crossdock.plan(checkpoint, "hf"), tmp_path / "hf", memory=1 << 20, workers=2)
    assert np.abs(logits_of(tmp_path / "hf") - wanted).max() < 1e-6 * np.abs(wanted).max()
    assert crossdock.verify(tmp_path / "hf", checkpoint).ok


@pytest.mark.parametrize("name", ["every matrix of the layers", "a stack of experts", "DoRA"])
def test_the_merged_model_in_gguf(name: str, adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Through GGUF, which orders rows otherwise and stacks experts, and back: the same model."""
    model, options = CASES[name]
    adapter = adapted(adapter_bases(model), tmp_path / "adapter", **options)
    wanted = logits_of(adapter_bases(model), adapter)
    crossdock.export(adapter, tmp_path / "m.gguf", "gguf", base=adapter_bases(model))
    crossdock.export(tmp_path / "m.gguf", tmp_path / "hf", "hf")
    assert np.abs(logits_of(tmp_path / "hf") - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_rank_files_are_cut_from_the_merged_model(adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapted(adapter_bases("llama"), tmp_path / "adapter", target_modules=INSIDE, use_rslora=True)
    crossdock.export(adapter, tmp_path / "merged", "hf", base=adapter_bases("llama"))
    options: dict[str, Any] = {"dtype": "float32", "tp": 2}
    crossdock.export(adapter, tmp_path / "one", "trtllm", base=adapter_bases("llama"), **options)
    crossdock.export(tmp_path / "merged", tmp_path / "other", "trtllm", **options)
    assert crossdock.diff(tmp_path / "one", tmp_path / "other").same
