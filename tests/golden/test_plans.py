"""Plans of the real Megatron checkpoints are what they were: refactoring must not change what is copied where."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CHECKPOINTS
from crossdock import delivery

sys.path.insert(0, str(Path(__file__).parent))
from regenerate import TARGETS, digests

GOLDEN: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "plans.json").read_text())
HOW = "if the change is meant: PYTHONPATH=src python tests/golden/regenerate.py, and look at its diff"


def test_every_checkpoint_has_golden_plans() -> None:
    assert sorted(GOLDEN) == sorted([*CHECKPOINTS, "tiny-kjv"]), HOW
    assert {name for plans in GOLDEN.values() for name in plans} == set(TARGETS), HOW


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_plans_are_the_golden_ones(name: str, megatron_checkpoint: Callable[[str], Path]) -> None:
    got = digests(megatron_checkpoint(name))
    changed = [target for target in TARGETS if got[target] != GOLDEN[name][target]]
    assert not changed, f"the plans of {name} to {', '.join(changed)} changed; {HOW}"


@pytest.mark.parametrize("name", ["qwen3-v019-dist-tp2pp2-fp32", "qwen2-v019-legacy-tp2-fp32"])
def test_neither_place_nor_time_of_the_files_is_in_a_plan(
    name: str, tmp_path: Path, megatron_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(megatron_checkpoint(name), moved)
    for file in moved.rglob("*"):
        os.utime(file, (1, 1))
    assert digests(moved) == GOLDEN[name]
    monkeypatch.chdir(moved.parent)
    assert digests(Path("run")) == GOLDEN[name]


def test_what_is_asked_for_is_in_a_plan(megatron_checkpoint: Callable[[str], Path]) -> None:
    checkpoint = delivery.open(megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32"))
    plans = [delivery.plan(checkpoint, to, dtype=d, quantize=q) for to, d, q in TARGETS.values()]
    assert len({plan.digest for plan in plans}) == len(plans)
    small = delivery.plan(checkpoint, "hf", dtype="float32", max_shard_size=100_000)
    assert small.digest != plans[0].digest
