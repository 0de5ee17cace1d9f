"""Engines: the same bytes and reports whoever does the tasks, wherever; and what a plug-in has to be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_files import contents, write_llama

import crossdock
from crossdock.errors import CrossdockError, InputError, PlanError, UsageError
from crossdock.running.engines import registry
from crossdock.running.engines.threads import Threads
from support.process_engine import Processes

ROOT = Path(__file__).resolve().parents[2]
KJV = ROOT / "examples" / "tiny-kjv"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "source")


@pytest.mark.parametrize(("to", "options"), [("gguf", {"quantize": "q4_k_m"}), ("hf", {"quantize": "fp8"})])
def test_processes_write_what_threads_write(tmp_path: Path, to: str, options: dict[str, Any]) -> None:
    plan = crossdock.plan(crossdock.open(KJV), to, **options)
    seen: list[int] = []
    here, there = tmp_path / "threads" / "out", tmp_path / "processes" / "out"
    crossdock.run(plan, here, engine="threads")
    crossdock.run(plan, there, engine=Processes(), workers=2, progress=lambda n, *_: seen.append(n))
    assert contents(there) == contents(here)
    assert seen == sorted(seen)
    assert seen[-1] >= sum(tensor.nbytes for tensor in plan.tensors)


def test_processes_verify_and_compare_as_threads_do(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = crossdock.plan(crossdock.open(source), "gguf", quantize="q8_0")
    crossdock.run(plan, out)
    with out.open("r+b") as file:
        file.seek(plan.tensors[3].offset)
        file.write(b"\xff\xff\xff\xff")
    for engine in ("threads", Processes()):
        report = crossdock.verify(out, source, engine=engine, workers=2)
        assert [check.name for check in report.tensors if check.status == "different"] == [plan.tensors[3].name]
        diff = crossdock.diff(out, source, engine=engine, workers=2)
        assert [one.status for one in diff.tensors].count("different") == 1


def test_what_fails_in_another_process_fails_here_as_it_was(source: Path, tmp_path: Path) -> None:
    plan = crossdock.plan(crossdock.open(source), "hf")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CrossdockError) as here:
        crossdock.run(plan, tmp_path / "threads", engine="threads")
    with pytest.raises(CrossdockError) as there:
        crossdock.run(plan, tmp_path / "processes", engine=Processes(), workers=2)
    assert type(there.value) is type(here.value) is InputError
    assert there.value.problems[0].what == here.value.problems[0].what
    assert not (tmp_path / "processes").exists()


def test_a_tied_head_that_differs_is_found_by_processes_too(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "source", tie_word_embeddings=True)
    with pytest.raises(PlanError, match="to which the configuration ties it"):
        crossdock.run(crossdock.plan(crossdock.open(source), "hf"), tmp_path / "out", engine=Processes(), workers=2)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_results_are_settled_before_they_are_handed_over_even_when_a_task_fails() -> None:
    told: list[str] = []

    class Job:
        def open(self) -> Any:
            import contextlib

            return contextlib.nullcontext(self)

        def worker(self) -> Any:
            def work(task: int, watch: Any) -> int:
                if task == 3:
                    raise ValueError("three")
                return task

            return work

        def settle(self, results: Any) -> None:
            told.append(f"settled {list(results)}")

    with pytest.raises(ValueError, match="three"):
        Threads().work(
            Job(), range(8), workers=1, progress=lambda units: None, done=lambda r: told.append(f"done {list(r)}")
        )
    assert told == ["settled [0, 1, 2]", "done [0, 1, 2]"]


def test_an_unknown_engine_is_refused_with_the_known_ones(source: Path, tmp_path: Path) -> None:
    assert registry.names()[0] == "threads"
    with pytest.raises(UsageError, match="unknown engine 'ray2'; choose one of threads"):
        crossdock.run(crossdock.plan(crossdock.open(source), "hf"), tmp_path / "out", engine="ray2")


def test_a_plan_survives_pickling(source: Path) -> None:
    plan = crossdock.plan(crossdock.open(source), "gguf", quantize="q8_0")
    again = pickle.loads(pickle.dumps(plan))
    assert again.digest == plan.digest
    assert np.array_equal([t.nbytes for t in again.tensors], [t.nbytes for t in plan.tensors])
