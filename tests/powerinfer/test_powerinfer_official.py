"""What PowerInfer's own module wrote, byte for byte, and the optima that were computed independently of crossdock."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from powerinfer_samples import CASES, DATA, TIES

from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.split import Split, split
from crossdock_powerinfer.statistics import read_statistics

NAMES = [f"{case['folder']}-{case['capacity']}-{case['threshold']}" for case in CASES]


def run(case: dict[str, Any]) -> tuple[Split, float]:
    statistics = read_statistics(DATA / case["folder"])
    out = split(
        statistics,
        capacity=case["capacity"],
        threshold=case["threshold"],
        grain=case["batch"],
        vram_capacity=case["vram_capacity"],
    )
    return out, statistics.amount(out.objective)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_as_the_official_module(case: dict[str, Any]) -> None:
    official = case.get("sorted", case["head"])
    found, objective = run(case)
    assert list(found.index.neurons) == official["solved"]
    assert objective == pytest.approx(case["exact_optimum"]["objective"], rel=1e-15)
    assert found.coverage == pytest.approx(case["exact_optimum"]["coverage"], rel=1e-15)
    assert found.bound >= found.objective
    data = b"".join(gpuidx.encode(found.index))
    assert len(data) == official["bytes"]
    if TIES not in case["folder"]:
        assert hashlib.sha256(data).hexdigest() == official["sha256"]


def test_there_are_cases_with_and_without_ties() -> None:
    assert sum(TIES in case["folder"] for case in CASES) == 1
    assert sum(TIES not in case["folder"] for case in CASES) == 4


@pytest.mark.parametrize("file", sorted((DATA / "out").iterdir()), ids=lambda file: file.name)
def test_official_files_are_read_and_written_back_the_same(file: Any) -> None:
    index = gpuidx.read(file)
    assert gpuidx.disagreements(index) == []
    assert b"".join(gpuidx.encode(index)) == file.read_bytes()
