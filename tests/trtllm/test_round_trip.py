"""Megatron's real checkpoints through rank files and back: what comes to Hugging Face is what comes there directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import models
from conftest import CHECKPOINTS
from crossdock import delivery
from crossdock.errors import PlanError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.files import hf_hashes

LACKING = ("deepseek", "qwen3")
# recipe -> what is said
REFUSED = {
    "deepseek_v3": "multi-head latent", "qwen3": "norms of q and k", "qwen3_moe": "norms of q and k",
    "qwen3_moe-mixed": "norms of q and k", "qwen3_moe-sparse-step": "norms of q and k",
    "gemma2": "norms behind", "gemma2-own-scale": "norms behind",
    "stablelm": "bias in every matrix or in none", "stablelm-parallel": "one behind the other",
    "gpt_neox": "one behind the other", "falcon-one-norm": "base 10000",
}  # fmt: skip
NAMES = [name for name in CHECKPOINTS if not name.startswith(LACKING)]


@pytest.mark.parametrize("name", NAMES)
def test_back_to_hugging_face(name: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The router stays float32 in rank files, so a dtype is named on the way back."""
    checkpoint = delivery.open(megatron_checkpoint(name))
    dtype = checkpoint.config.dtype
    delivery.run(delivery.plan(checkpoint, "hf", dtype=dtype), tmp_path / "direct", workers=1)
    direct = hf_hashes(tmp_path / "direct")
    for tp, pp in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)):
        out, back = tmp_path / f"{tp}.{pp}", tmp_path / f"{tp}.{pp}-hf"
        delivery.run(delivery.plan(checkpoint, "trtllm", tp=tp, pp=pp, use_parallel_embedding=tp == 4), out, workers=1)
        delivery.run(delivery.plan(delivery.open(out), "hf", dtype=dtype), back, workers=1)
        assert hf_hashes(back) == direct, (tp, pp)
        assert json.loads((back / "config.json").read_text()) == json.loads(
            (tmp_path / "direct/config.json").read_text()
        )


@pytest.mark.parametrize("name", [n for n in NAMES if "fp32" in n])
def test_rank_files_compute_megatrons_logits(
    name: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    root = megatron_checkpoint(name)
    delivery.run(delivery.plan(delivery.open(root), "trtllm", tp=4, pp=2), tmp_path / "out", workers=1)
    opened = delivery.open(tmp_path / "out")
    row = np.load(root / "tokens.npy")[0]
    with CheckpointWeights(opened, 8 << 20) as weights:
        got = forward(opened.config, weights, row.tolist())
    assert np.abs(got - np.load(root / "logits.npy")[0]).max() <= 1e-5


@pytest.mark.parametrize("recipe", models.RECIPES)
def test_every_model_is_read_back_or_refused(recipe: str, tmp_path: Path) -> None:
    """Tensors and configuration both; widths that no layer has aside."""
    checkpoint = delivery.open(models.make_hf(recipe, tmp_path / "hf"))
    if recipe in REFUSED:
        with pytest.raises(PlanError, match=REFUSED[recipe]):
            delivery.plan(checkpoint, "trtllm")
        return
    delivery.run(delivery.plan(checkpoint, "trtllm", pp=2), tmp_path / "out", workers=1)
    back = delivery.open(tmp_path / "out")
    assert all(tensor.same for tensor in delivery.diff(checkpoint, back, workers=1).tensors)
    free = {"intermediate_size"} if checkpoint.config.num_experts else set()
    ours, theirs = checkpoint.config.as_dict(), back.config.as_dict()
    assert {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key] and key not in free} == {}
