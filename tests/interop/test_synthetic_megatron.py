"""The synthetic torch_dist checkpoints of benchmarks/ are real ones: torch reads them, and crossdock reads
the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Answer
from oracles.files import hf_state
from oracles.megatron_state import megatron_state

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import make_torch_dist

DENSE = {"hidden": 64, "heads": 8, "groups": 4, "head_dim": 16, "ffn": 96, "vocab": 256}
MOE = DENSE | {"experts": 6, "expert_ffn": 48}
CASES = [(DENSE, 2, 2), (DENSE, 4, 1), (DENSE, 1, 4), (MOE, 2, 1)]


@pytest.fixture(scope="module", params=CASES, ids=["tp2-pp2", "tp4", "pp4", "experts-tp2"])
def synthetic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint root and its family."""
    model, tp, pp = request.param
    root = tmp_path_factory.mktemp("synthetic") / "root"
    make_torch_dist.write(root, model, 4, tp, pp, sparse=False)
    return root, "qwen3_moe" if "experts" in model else "llama"


def test_torch_consolidates_it(synthetic: tuple[Path, str], tmp_path: Path) -> None:
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    root, family = synthetic
    dcp_to_torch_save(root / "iter_0001000", tmp_path / "all.pt")
    state: dict[str, Any] = torch.load(tmp_path / "all.pt", weights_only=False)
    expected = megatron_state(root, family)
    embedding = state["embedding.word_embeddings.weight"].float().numpy()
    np.testing.assert_array_equal(embedding, expected["model.embed_tokens.weight"])
    assert state["common_state/shard_0_1"][0]["args"].hidden_size == 64


def test_crossdock_reads_the_same(
    synthetic: tuple[Path, str], tmp_path: Path, crossdock: Callable[..., Answer]
) -> None:
    root, family = synthetic
    crossdock("export", root, "--to", "hf", "-o", tmp_path / "hf", "--dtype", "float32").ok()
    expected, got = megatron_state(root, family), hf_state(tmp_path / "hf")
    assert sorted(got) == sorted(expected)
    assert not [name for name in expected if not np.array_equal(expected[name], got[name])]
