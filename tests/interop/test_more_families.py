"""Tiny checkpoints that megatron-core 0.16.1 saved for the families without a large one: every engine computes its
logits from what crossdock makes of them, and formats that lack the model refuse it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crossdock.delivery as delivery
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits

DATA = Path(__file__).parents[1] / "data/families"
# checkpoint -> its family, and how far llama.cpp is: 5e-3 where it looks gelu up in a table of half precision
LEAVES = {"starcoder-v016-dist-tp2-fp32": ("starcoder", 5e-3)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in tests/data/families -> the folder, unpacked once."""
    base = tmp_path_factory.mktemp("families")

    def unpacked(name: str) -> Path:
        if not (base / name).exists():
            with tarfile.open(DATA / f"{name}.tar.xz") as archive:
                archive.extractall(base, filter="data")
        return base / name

    return unpacked


def test_every_checkpoint_is_tested() -> None:
    assert {file.name.removesuffix(".tar.xz") for file in DATA.glob("*.tar.xz")} == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_the_reference_forward_computes_megatrons_logits(name: str, checkpoint: Callable[[str], Path]) -> None:
    root = checkpoint(name)
    opened = delivery.open(root)
    assert opened.config.family == LEAVES[name][0]
    with CheckpointWeights(opened, 8 << 20) as weights:
        got = np.stack([forward(opened.config, weights, row.tolist()) for row in np.load(root / "tokens.npy")])
    assert np.abs(got - np.load(root / "logits.npy")).max() <= 1e-5


@pytest.mark.parametrize("name", LEAVES)
def test_engines_compute_megatrons_logits(name: str, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    root = checkpoint(name)
    tokens, expected = np.load(root / "tokens.npy"), np.load(root / "logits.npy")
    delivery.export(root, tmp_path / "hf", "hf", dtype="float32")
    assert np.abs(transformers_logits(tmp_path / "hf", tokens) - expected).max() <= 1e-5
    delivery.export(root, tmp_path / "m.gguf", "gguf", dtype="float32")
    assert np.abs(llama_logits(tmp_path / "m.gguf", tokens) - expected).max() <= LEAVES[name][1]
