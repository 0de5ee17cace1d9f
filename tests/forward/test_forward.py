"""The reference forward computes what Megatron and transformers compute, and the same from every format."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crossdock.delivery as delivery
import models
from conftest import CHECKPOINTS
from crossdock.errors import UsageError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits

MEMORY = 8 << 20
# Megatron's own float32 is further than 1e-5 from the same forward in float64: 1.3e-5 for tiny-kjv, whose logits reach
# 16, and 1.36e-5 for deepseek (one position of 48; with rope angles in float32 it is 1.13e-5)
ROUNDING = {"tiny-kjv": 2e-5, "deepseek-v019-dist-tp2pp2-fp32": 1.5e-5}


def reference(path: Path, tokens: np.ndarray, memory: int = MEMORY) -> np.ndarray:
    checkpoint = delivery.open(path)
    with CheckpointWeights(checkpoint, memory) as weights:
        return np.stack([forward(checkpoint.config, weights, row.tolist()) for row in np.atleast_2d(tokens)])


def some_tokens(folder: Path, n: int = 90) -> np.ndarray:
    vocab = int(models.read_config(folder)["vocab_size"])
    return np.random.default_rng(0).integers(0, vocab, (1, n))


@pytest.mark.parametrize("name", [*CHECKPOINTS, "tiny-kjv"])
def test_forward_computes_megatrons_logits(name: str, megatron_checkpoint: Callable[[str], Path]) -> None:
    root = megatron_checkpoint(name)
    expected = np.load(root / "logits.npy")
    got = reference(root, np.load(root / "tokens.npy"))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= ROUNDING.get(name, 1e-5)


@pytest.mark.parametrize("recipe", models.RECIPES)
def test_forward_computes_transformers_logits(recipe: str, tmp_path: Path) -> None:
    folder = models.make_hf(recipe, tmp_path / recipe, dtype="float32")
    tokens = some_tokens(folder)
    assert np.abs(reference(folder, tokens) - transformers_logits(folder, tokens)).max() <= 1e-5


def test_every_format_of_one_model_gives_the_same_logits(
    tmp_path: Path, megatron_checkpoint: Callable[[str], Path]
) -> None:
    root = megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32")
    tokens = np.load(root / "tokens.npy")
    expected = reference(root, tokens)
    for out, to in ((tmp_path / "hf", "hf"), (tmp_path / "model.gguf", "gguf")):
        delivery.export(root, out, to, dtype="float32")
        np.testing.assert_array_equal(reference(out, tokens), expected)
    assert np.abs(llama_logits(tmp_path / "model.gguf", tokens) - expected).max() <= 1e-4


def test_a_token_outside_the_vocabulary_is_refused(megatron_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="no token ids"):
        reference(megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32"), np.array([[1, 1_000_000]]))


def test_memory_does_not_grow_with_the_matrices(tmp_path: Path) -> None:
    folder = models.make_hf("llama", tmp_path / "wide", dtype="bfloat16", vocab_size=400_000)  # 2 x 102 MB as float32
    checkpoint = delivery.open(folder)
    tracemalloc.start()
    try:
        with CheckpointWeights(checkpoint, MEMORY) as weights:
            forward(checkpoint.config, weights, [5])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= MEMORY + 2 * 4 * 400_000 + (2 << 20)  # the logits, once in parts and once whole
