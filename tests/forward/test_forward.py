"""The reference forward computes what Megatron and transformers compute, and the same from every format."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import crossdock.delivery as delivery
from conftest import CHECKPOINTS
from crossdock.errors import UsageError
from crossdock.model.forward import forward
from crossdock.model.layers.layer import Weights
from crossdock.running.weights import CheckpointWeights
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits
from support import hf_models
from support.reference_logits import FLOAT32, MEMORY, STORED, Doubled, reference_logits, relative

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}


def as_stored(weights: Weights) -> Weights:
    """The weights as files hold them."""
    return weights


def some_tokens(folder: Path, n: int = 90) -> np.ndarray:
    vocab = int(hf_models.read_config(folder)["vocab_size"])
    return np.random.default_rng(0).integers(0, vocab, (1, n))


@pytest.mark.parametrize("held", [as_stored, Doubled])
@pytest.mark.parametrize("name", [*CHECKPOINTS, "tiny-kjv"])
def test_forward_computes_megatrons_logits(
    name: str, held: Callable[[Weights], Weights], megatron_checkpoint: Callable[[str], Path]
) -> None:
    root = megatron_checkpoint(name)
    got = reference_logits(root, np.load(root / "tokens.npy"), held=held)
    assert got.dtype == (np.float64 if held is Doubled else np.float32)
    assert relative(got, np.load(root / "logits.npy")) <= STORED.get(name, FLOAT32)


@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX", "Prescott"])
def test_other_kernels_of_blas_stay_within_the_bound(
    kernels: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Prescott's with the fewest instructions that numpy can do with."""
    root, got = megatron_checkpoint("tiny-kjv"), tmp_path / "logits.npy"
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    without = {"NPY_DISABLE_CPU_FEATURES": " ".join(found)} if kernels == "Prescott" else {}
    program = (
        "import sys, numpy, pathlib; from support import reference_logits; root = pathlib.Path(sys.argv[1])\n"
        "numpy.save(sys.argv[2], reference_logits.reference_logits(root, numpy.load(root / 'tokens.npy')))\n"
    )
    environment = os.environ | without | {"OPENBLAS_CORETYPE": kernels, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, root, got], check=True, env=environment)
    assert relative(np.load(got), np.load(root / "logits.npy")) <= FLOAT32


@pytest.mark.parametrize("recipe", [*hf_models.RECIPES, "deepseek_v3 without q_lora"])
def test_forward_computes_transformers_logits(recipe: str, tmp_path: Path) -> None:
    recipe, _, without = recipe.partition(" without ")
    more: dict[str, Any] = {f"{without}_rank": None} if without else {}
    folder = hf_models.make_hf(recipe, tmp_path / recipe, dtype="float32", **more)
    tokens = some_tokens(folder)
    assert relative(reference_logits(folder, tokens), transformers_logits(folder, tokens)) <= FLOAT32


@pytest.mark.parametrize("recipe", ["llama", "llama-head-dim", "llama3", "llama-linear", "qwen2", "llama-yarn"])
def test_far_positions_have_the_angles_of_training(recipe: str, tmp_path: Path) -> None:
    """With attention that looks at few tokens, as trained models' does, exact angles would be 2e-4 off.

    Such attention also enlarges the last bits of its scores: 4e-6 of the largest logit.
    """
    more: dict[str, Any] = {"rope_parameters": YARN} if recipe == "llama-yarn" else {}
    sizes = {
        "max_position_embeddings": 2048,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    recipe = recipe.removesuffix("-yarn")
    folder = hf_models.make_hf(recipe, tmp_path / recipe, dtype="float32", **sizes, **more)
    (file,) = folder.glob("*.safetensors")
    tensors = {n: t * 3 if n.endswith(("q_proj.weight", "k_proj.weight")) else t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    tokens = some_tokens(folder, 2000)
    assert relative(reference_logits(folder, tokens), transformers_logits(folder, tokens)) <= 1e-5


def test_every_format_of_one_model_gives_the_same_logits(
    tmp_path: Path, megatron_checkpoint: Callable[[str], Path]
) -> None:
    root = megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32")
    tokens = np.load(root / "tokens.npy")
    expected = reference_logits(root, tokens)
    for out, to in ((tmp_path / "hf", "hf"), (tmp_path / "model.gguf", "gguf")):
        delivery.export(root, out, to, dtype="float32")
        np.testing.assert_array_equal(reference_logits(out, tokens), expected)
    assert relative(llama_logits(tmp_path / "model.gguf", tokens), expected) <= 1e-5


def test_a_token_outside_the_vocabulary_is_refused(megatron_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="token ids out of range"):
        reference_logits(megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32"), np.array([[1, 1_000_000]]))


@pytest.mark.parametrize("recipe", ["llama", "gpt2", "mixtral"])
def test_a_model_that_diverged_gives_nan_without_a_warning(recipe: str, tmp_path: Path) -> None:
    folder = hf_models.make_hf(recipe, tmp_path / recipe, dtype="float32")
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and ("mlp" in name or "moe" in name):
            tensors[name] = tensor.copy()
            tensors[name][0, 0] = np.inf
    save_file(tensors, file, {"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(reference_logits(folder, some_tokens(folder))).any()


def test_memory_does_not_grow_with_the_matrices(tmp_path: Path) -> None:
    folder = hf_models.make_hf(
        "llama", tmp_path / "wide", dtype="bfloat16", vocab_size=400_000
    )  # 2 x 102 MB as float32
    checkpoint = delivery.open(folder)

    def compute() -> None:
        with CheckpointWeights(checkpoint, MEMORY) as weights:
            forward(checkpoint.config, weights, [5])

    compute()  # what is imported or looked up once is not the forward's
    tracemalloc.start()
    try:
        compute()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= MEMORY + 2 * 4 * 400_000 + (2 << 20)  # the logits, once in parts and once whole
