"""Megatron's real checkpoints through rank files and back: what comes to Hugging Face is what comes there directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import CHECKPOINTS, FAMILY_CHECKPOINTS
from crossdock import delivery
from crossdock.errors import PlanError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.files import hf_hashes
from support import hf_models
from support.reference_logits import FLOAT32, STORED, relative

GRID = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2))
# recipe or checkpoint -> what is said; all others go
REFUSED = {
    "deepseek_v2": "multi-head latent", "deepseek_v3": "multi-head latent",
    "deepseek-v019-dist-tp2pp2-fp32": "multi-head latent",
    "qwen3_moe-mixed": "experts in every layer", "qwen3_moe-sparse-step": "experts in every layer",
    "stablelm": "bias in every matrix or in none", "stablelm-parallel": "one behind the other",
    "gpt_neox": "one behind the other", "falcon-one-norm": "base 10000",
}  # fmt: skip
NAMES = [name for name in (*CHECKPOINTS, *FAMILY_CHECKPOINTS) if name not in REFUSED]
# models that transformers has not: rank files alone come back
OWN = ("gpt-gated-v016-dist-tp2-fp32", "gptnext-gated-v016-dist-tp2-fp32")


@pytest.mark.parametrize("name", [name for name in REFUSED if name in (*CHECKPOINTS, *FAMILY_CHECKPOINTS)])
def test_what_it_has_no_model_for_is_refused(name: str, megatron_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(PlanError, match=REFUSED[name]):
        delivery.plan(delivery.open(megatron_checkpoint(name)), "trtllm")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN])
def test_back_to_hugging_face(name: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Byte for byte what Megatron's checkpoint becomes without the way round."""
    checkpoint = delivery.open(megatron_checkpoint(name))
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "direct", workers=1)
    direct = hf_hashes(tmp_path / "direct")
    for tp, pp in GRID:
        out, back = tmp_path / f"{tp}.{pp}", tmp_path / f"{tp}.{pp}-hf"
        delivery.run(delivery.plan(checkpoint, "trtllm", tp=tp, pp=pp, use_parallel_embedding=tp == 4), out, workers=1)
        delivery.run(delivery.plan(delivery.open(out), "hf"), back, workers=1)
        assert hf_hashes(back) == direct, (tp, pp)
        assert json.loads((back / "config.json").read_text()) == json.loads(
            (tmp_path / "direct/config.json").read_text()
        )


@pytest.mark.parametrize("name", NAMES)
def test_rank_files_compute_megatrons_logits(
    name: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    root = megatron_checkpoint(name)
    checkpoint, row = delivery.open(root), np.load(root / "tokens.npy")[0]
    for tp, pp in GRID:
        delivery.run(delivery.plan(checkpoint, "trtllm", tp=tp, pp=pp), tmp_path / f"{tp}.{pp}", workers=1)
        opened = delivery.open(tmp_path / f"{tp}.{pp}")
        with CheckpointWeights(opened, 8 << 20) as weights:
            got = forward(opened.config, weights, row.tolist())
        assert relative(got, np.load(root / "logits.npy")[0]) <= STORED.get(name, FLOAT32), (tp, pp)


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
def test_every_model_is_read_back_or_refused(recipe: str, tmp_path: Path) -> None:
    """Tensors and configuration both; widths that no layer has aside."""
    checkpoint = delivery.open(hf_models.make_hf(recipe, tmp_path / "hf"))
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
