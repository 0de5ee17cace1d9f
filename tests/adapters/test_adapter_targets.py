"""Adapters that stay adapters: for llama.cpp and for peft, each by the program that owns the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from crossdock.errors import PlanError
from crossdock.formats.gguf.container import read_header
from oracles.llama_engine import llama_logits
from support.peft_adapters import TOKENS, adapted, logits_of

INSIDE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "one alpha": ("llama", {"target_modules": INSIDE, "lora_alpha": 6}, 6.0),
    "rslora": ("llama", {"target_modules": INSIDE, "lora_alpha": 6, "use_rslora": True}, 6.0 * 3**0.5),
    "ranks of different sizes, one alpha": ("llama", {"target_modules": INSIDE, "rank_pattern": {"v_proj": 5}}, 8.0),
    "alphas that differ": ("llama", {"target_modules": INSIDE, "alpha_pattern": {"v_proj": 2, "down_proj": 3}}, 0.0),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, 8.0),
    "a stack of experts": ("qwen3_moe", {
        "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }, 8.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_with_the_adapter_is_the_merged_model(
    name: str, adapter_bases: Callable[[str], Path], tmp_path: Path
) -> None:
    model, options, alpha = CASES[name]
    base = adapter_bases(model)
    adapter = adapted(base, tmp_path / "adapter", **options)
    crossdock.export(base, tmp_path / "base.gguf", "gguf")
    crossdock.export(adapter, tmp_path / "merged.gguf", "gguf", base=base)
    checkpoint = crossdock.open(adapter, base=base, merge=False)
    crossdock.run(crossdock.plan(checkpoint, "gguf-lora"), tmp_path / "lora.gguf", memory=1 << 20, workers=2)
    assert read_header(tmp_path / "lora.gguf").metadata["adapter.lora.alpha"] == pytest.approx(alpha)
    assert crossdock.verify(tmp_path / "lora.gguf", checkpoint).ok
    wanted = llama_logits(tmp_path / "merged.gguf", np.array(TOKENS))
    found = llama_logits(tmp_path / "base.gguf", np.array(TOKENS), adapter=tmp_path / "lora.gguf")
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert np.abs(wanted[0] - logits_of(base, adapter)).max() < 2e-5 * np.abs(wanted).max()
    assert np.abs(llama_logits(tmp_path / "base.gguf", np.array(TOKENS)) - wanted).max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_peft_with_the_adapter_written_anew_is_the_same_model(
    name: str, adapter_bases: Callable[[str], Path], tmp_path: Path
) -> None:
    model, options, _ = CASES[name]
    base = adapter_bases(model)
    adapter = adapted(base, tmp_path / "adapter", **options)
    checkpoint = crossdock.open(adapter, base=base, merge=False)
    crossdock.run(crossdock.plan(checkpoint, "peft"), tmp_path / "again")
    assert crossdock.verify(tmp_path / "again", checkpoint).ok
    wanted = logits_of(base, adapter)
    assert np.abs(logits_of(base, tmp_path / "again") - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_weights_stored_as_in_out(adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapted(
        adapter_bases("gpt2"), tmp_path / "adapter", target_modules=["c_attn", "c_proj", "c_fc"], use_rslora=True
    )
    checkpoint = crossdock.open(adapter, base=adapter_bases("gpt2"), merge=False)
    crossdock.run(crossdock.plan(checkpoint, "peft"), tmp_path / "again")
    wanted = logits_of(adapter_bases("gpt2"), adapter)
    assert np.abs(logits_of(adapter_bases("gpt2"), tmp_path / "again") - wanted).max() < 1e-6 * np.abs(wanted).max()
    config = json.loads((tmp_path / "again/adapter_config.json").read_text())
    assert config["lora_alpha"] == pytest.approx(8 * 3**0.5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"target_modules": ["q_proj"], "use_dora": True}, "gguf-lora has no magnitudes of DoRA"),
    "whole tensors": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "has whole tensors or rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_adapter_of_llama_cpp_has_no_place_for(
    name: str, adapter_bases: Callable[[str], Path], tmp_path: Path
) -> None:
    options, sentence = REFUSED[name]
    adapter = adapted(adapter_bases("llama"), tmp_path / "adapter", **options)
    with pytest.raises(PlanError, match=sentence):
        crossdock.plan(crossdock.open(adapter, base=adapter_bases("llama"), merge=False), "gguf-lora")


@pytest.mark.parametrize("to", ["hf", "gguf", "trtllm"])
def test_an_adapter_is_not_exported_as_a_model(to: str, adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapted(adapter_bases("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(PlanError, match="this is an adapter, not a model") as caught:
        crossdock.plan(crossdock.open(adapter, base=adapter_bases("llama"), merge=False), to)
    assert "--merge adds it" in caught.value.problems[0].fix
