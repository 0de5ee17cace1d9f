"""Putting an output in place of another one: in one step where the file system can, by two renames elsewhere."""

import os
from pathlib import Path
from typing import Any

import pytest
from llama_files import contents, tensors, write_llama

import crossdock
from crossdock.running import publish


class Killed(BaseException):
    """What a kill is to the code after it, within this process."""


def plan_of(source: Path) -> crossdock.Plan:
    return crossdock.plan(crossdock.open(source), "hf")


def weights_in(folder: Path) -> bytes | None:
    file = folder / "model.safetensors"
    return file.read_bytes() if file.exists() else None


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    return write_llama(tmp_path / "new"), write_llama(tmp_path / "old", tensors(seed=2))


def test_two_folders_change_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "mine").write_text("1")
    (other / "yours").write_text("2")
    if not publish.exchange(one, other):  # a file system without it: nothing has moved
        assert (one / "mine").exists()
        return
    assert (other / "mine").read_text() == "1"
    assert (one / "yours").read_text() == "2"
    assert not publish.exchange(one, tmp_path / "nowhere")


@pytest.mark.parametrize("can", [True, False])
def test_killed_at_every_step(
    can: bool, sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is an old or a new model at any time; with the exchange, under the output's own name."""
    new, old = sources
    clean = tmp_path / "clean" / "out"
    crossdock.run(plan_of(new), clean)
    crossdock.run(plan_of(old), tmp_path / "before" / "out")
    wanted, models = contents(clean), (weights_in(clean), weights_in(tmp_path / "before" / "out"))
    probe = tmp_path / "probe"
    probe.mkdir()
    can = can and publish.exchange(probe, tmp_path / "before")
    for last in range(1, 100):
        output = tmp_path / f"{last}" / "out"
        crossdock.run(plan_of(old), output)
        with monkeypatch.context() as patch:
            calls = iter(range(1, 1000))

            def counted(real: Any, calls: Any = calls, last: int = last) -> Any:
                def call(*args: Any, **flags: Any) -> Any:
                    if next(calls) == last:
                        raise Killed
                    return real(*args, **flags)

                return call

            real = publish.put_in_place

            def put(*args: Any, patch: Any = patch, real: Any = real, counted: Any = counted) -> None:
                for name in ("rename", "replace", "unlink", "fsync", "rmdir"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                patch.setattr(publish, "exchange", counted(publish.exchange) if can else lambda *_: False)
                real(*args)

            patch.setattr("crossdock.running.run.put_in_place", put)
            try:
                crossdock.run(plan_of(new), output, force=True)
                whole = True
            except Killed:
                whole = False
        if can:
            assert weights_in(output) in models, last
        else:
            there = [weights_in(output.with_name(name)) for name in ("out", "out.crossdock-replaced", "out.partial")]
            assert set(there) & set(models)
        if not whole:
            crossdock.run(plan_of(new), output, force=True)
        assert contents(output) == wanted, last
        assert {f.name for f in output.parent.iterdir()} == {"out", "out.manifest.json"}, last
        if whole:
            return
    pytest.fail("the placement never ended")
