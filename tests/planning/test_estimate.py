"""What `inspect` says a model would take as a target is what a plan takes, byte for byte of tensor data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import crossdock
from crossdock.codecs import registry
from crossdock.summary import target_sizes

ROOT = Path(__file__).parents[2]


def planned(checkpoint: crossdock.Checkpoint, to: str, dtype: str) -> int:
    kind = "dtype" if registry.get(dtype).block == 1 else "quantize"
    return sum(tensor.nbytes for tensor in crossdock.plan(checkpoint, to, **{kind: dtype}).tensors)


@pytest.mark.parametrize("recipe", ["gpt2", "llama", "llama3", "mixtral", "gemma2", "deepseek_v3", "qwen3_moe"])
def test_sizes_are_those_of_plans(recipe: str, hf_model: Callable[[str], Path]) -> None:
    checkpoint = crossdock.open(hf_model(recipe))
    sizes = target_sizes(checkpoint)
    assert {to for to, _, _ in sizes} == {"hf", "gguf"}
    assert sizes == [(to, dtype, planned(checkpoint, to, dtype)) for to, dtype, _ in sizes]


def test_sizes_of_a_megatron_checkpoint_are_those_of_plans() -> None:
    checkpoint = crossdock.open(ROOT / "examples" / "tiny-kjv")
    assert [(to, dtype, planned(checkpoint, to, dtype)) for to, dtype, _ in target_sizes(checkpoint)] == target_sizes(
        checkpoint
    )
