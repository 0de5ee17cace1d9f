"""The reference forward computes what Megatron and transformers compute, and the same from every format."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import crossdock.delivery as delivery
import models
from conftest import CHECKPOINTS
from crossdock.errors import UsageError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.llama_engine import llama_logits
from oracles.torch_rounding import OrderedWeights, round_as_torch
from oracles.transformers_engine import transformers_logits
from reference import MEMORY, Doubled, reference_logits

# Megatron's own float32 is further than 1e-5 from the same forward in float64: only the same roundings are nearer to
# its logits, and with those every bit is equal (below; docs/decisions/0005). The bound holds for BLAS of any processor:
# 1.13e-5 to 1.77e-5 with OpenBLAS's kernels for Sandybridge, Haswell and SkylakeX
ROUNDING = dict.fromkeys(("tiny-kjv", "deepseek-v019-dist-tp2pp2-fp32"), 2.5e-5)

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}


def some_tokens(folder: Path, n: int = 90) -> np.ndarray:
    vocab = int(models.read_config(folder)["vocab_size"])
    return np.random.default_rng(0).integers(0, vocab, (1, n))


@pytest.mark.parametrize("name", [*CHECKPOINTS, "tiny-kjv"])
def test_forward_computes_megatrons_logits(name: str, megatron_checkpoint: Callable[[str], Path]) -> None:
    root = megatron_checkpoint(name)
    tokens, expected = np.load(root / "tokens.npy"), np.load(root / "logits.npy")
    got, exact = reference_logits(root, tokens), reference_logits(root, tokens, held=Doubled)
    assert got.dtype == np.float32
    assert exact.dtype == np.float64
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= ROUNDING.get(name, 1e-5)
    assert np.abs(got - exact).max() <= ROUNDING.get(name, 1e-5)
    assert (np.abs(exact - expected).max() > 1e-5) == (name in ROUNDING)


@pytest.mark.parametrize("name", [*CHECKPOINTS, "tiny-kjv"])
def test_with_torchs_roundings_every_bit_is_megatrons(
    name: str, megatron_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored logits were computed with AVX-512. With shorter vectors torch adds up means in another order."""
    root = megatron_checkpoint(name)
    round_as_torch(monkeypatch)
    got = reference_logits(root, np.load(root / "tokens.npy"), held=OrderedWeights)
    same = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert np.abs(got - np.load(root / "logits.npy")).max() <= (0 if same else 1.3e-5)


@pytest.mark.parametrize("recipe", [*models.RECIPES, "deepseek_v3 without q_lora"])
def test_forward_computes_transformers_logits(recipe: str, tmp_path: Path) -> None:
    recipe, _, without = recipe.partition(" without ")
    more: dict[str, Any] = {f"{without}_rank": None} if without else {}
    folder = models.make_hf(recipe, tmp_path / recipe, dtype="float32", **more)
    tokens = some_tokens(folder)
    assert np.abs(reference_logits(folder, tokens) - transformers_logits(folder, tokens)).max() <= 1e-5


@pytest.mark.parametrize("recipe", ["llama", "llama-head-dim", "llama3", "llama-linear", "qwen2", "llama-yarn"])
def test_far_positions_have_the_angles_of_training(recipe: str, tmp_path: Path) -> None:
    """With attention that looks at few tokens, as trained models' does, exact angles would be 2e-4 off."""
    more: dict[str, Any] = {"rope_parameters": YARN} if recipe == "llama-yarn" else {}
    sizes = {
        "max_position_embeddings": 2048,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    recipe = recipe.removesuffix("-yarn")
    folder = models.make_hf(recipe, tmp_path / recipe, dtype="float32", **sizes, **more)
    (file,) = folder.glob("*.safetensors")
    tensors = {n: t * 3 if n.endswith(("q_proj.weight", "k_proj.weight")) else t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    tokens = some_tokens(folder, 2000)
    assert np.abs(reference_logits(folder, tokens) - transformers_logits(folder, tokens)).max() <= 2e-5


def test_every_format_of_one_model_gives_the_same_logits(
    tmp_path: Path, megatron_checkpoint: Callable[[str], Path]
) -> None:
    root = megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32")
    tokens = np.load(root / "tokens.npy")
    expected = reference_logits(root, tokens)
    for out, to in ((tmp_path / "hf", "hf"), (tmp_path / "model.gguf", "gguf")):
        delivery.export(root, out, to, dtype="float32")
        np.testing.assert_array_equal(reference_logits(out, tokens), expected)
    assert np.abs(llama_logits(tmp_path / "model.gguf", tokens) - expected).max() <= 1e-4


def test_a_token_outside_the_vocabulary_is_refused(megatron_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="no token ids"):
        reference_logits(megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32"), np.array([[1, 1_000_000]]))


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
