"""kill -9 at any write, flush or rename of a run: the same command again gives the same bytes."""

import random
from pathlib import Path
from typing import Any

import pytest
from llama_files import contents, tensors, write_llama

import crossdock
from crossdock.errors import UsageError
from crossdock.running.publish import MANIFEST
from support import killed_runs
from support.killed_runs import ALL

PLACING = "replace,rename,unlink,fsync,rmdir"
TARGETS = [("hf", "", "out"), ("gguf", "q8_0", "out.gguf"), ("trtllm", "", "out")]


def settings(to: str, quantize: str) -> dict[str, Any]:
    return {"quantize": quantize or None, **({"tp": 2} if to == "trtllm" else {})}


def killed_at(last: int, source: Path, output: Path, to: str, quantize: str, force: bool, names: str) -> int:
    """Run until the `last` call; how many calls there were when it is 0."""
    return killed_runs.killed_at(last, names, source, output, to, plan=settings(to, quantize), force=force)


def plan_of(source: Path, to: str, quantize: str) -> crossdock.Plan:
    return crossdock.plan(crossdock.open(source), to, **settings(to, quantize))


@pytest.mark.parametrize(("to", "quantize", "name"), TARGETS)
def test_resumed_output_is_byte_identical(tmp_path: Path, to: str, quantize: str, name: str) -> None:
    source = write_llama(tmp_path / "source")
    whole = tmp_path / "whole" / name
    total = killed_at(0, source, whole, to, quantize, False, ALL)
    expected = contents(whole)
    resumed = 0
    for last in sorted(random.Random(7).sample(range(1, total), 20)):
        output = tmp_path / f"killed-{last}" / name
        killed_at(last, source, output, to, quantize, False, ALL)
        if not output.exists():
            resumed += crossdock.run(plan_of(source, to, quantize), output).resumed
        else:
            end_or_refuse(source, output, to, quantize)
        assert contents(output) == expected, f"killed at call {last} of {total}"
    assert resumed > 0


@pytest.mark.parametrize(("to", "quantize", "name"), TARGETS)
@pytest.mark.parametrize("force", [False, True])
def test_every_step_of_the_placement(tmp_path: Path, to: str, quantize: str, name: str, force: bool) -> None:
    source, older = write_llama(tmp_path / "source"), write_llama(tmp_path / "older", tensors(seed=2))
    whole = tmp_path / "whole" / name
    crossdock.run(plan_of(source, to, quantize), whole)
    expected = contents(whole)
    crossdock.run(plan_of(older, to, quantize), tmp_path / "old" / name)
    before = contents(tmp_path / "old" / name)
    first = tmp_path / "first" / name
    if force:
        crossdock.run(plan_of(older, to, quantize), first)
    total = killed_at(0, source, first, to, quantize, force, PLACING)
    for last in range(max(1, total - 11), total + 1):
        output = tmp_path / f"killed-{last}" / name
        if force:
            crossdock.run(plan_of(older, to, quantize), output)
        killed_at(last, source, output, to, quantize, force, PLACING)
        if output.exists():
            model = {k: v for k, v in contents_if_any(output).items() if "crossdock" not in k and "manifest" not in k}
            kept = [{k: v for k, v in one.items() if "manifest" not in k} for one in (before, expected)]
            assert model in kept, f"neither the old nor the new output after call {last} of {total}"
        if force:
            crossdock.run(plan_of(source, to, quantize), output, force=True)
        else:
            end_or_refuse(source, output, to, quantize)
        assert contents(output) == expected, f"killed at call {last} of {total}"
        left = {f.name for f in output.parent.iterdir()} - {name, name + ".manifest.json", name + ".partial"}
        assert not left


def end_or_refuse(source: Path, output: Path, to: str, quantize: str) -> None:
    """The same command again: it goes on, or all was in place and the output exists."""
    ended = output.exists() and not unfinished(output)
    if ended:
        with pytest.raises(UsageError, match="the output exists"):
            crossdock.run(plan_of(source, to, quantize), output)
    else:
        crossdock.run(plan_of(source, to, quantize), output)


def unfinished(output: Path) -> bool:
    """Whether the last step of the placement, the removal of the private manifest, is still to come."""
    folder = output if output.is_dir() else output.with_name(output.name + ".partial")
    return (folder / MANIFEST).exists()


def contents_if_any(output: Path) -> dict[str, str]:
    manifest = output.with_name(output.name + ".manifest.json")
    if not manifest.exists():
        manifest.write_text("")
        try:
            return contents(output)
        finally:
            manifest.unlink()
    return contents(output)


def test_a_lost_file_of_an_unfinished_output_is_copied_again(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "source")
    whole, output = tmp_path / "whole", tmp_path / "out"
    total = killed_at(0, source, whole, "hf", "", False, ALL)
    killed_at(total - 15, source, output, "hf", "", False, ALL)
    (tmp_path / "out.partial" / "model.safetensors").unlink()
    report = crossdock.run(plan_of(source, "hf", ""), output)
    assert report.resumed == 0
    assert {k.partition("/")[2]: v for k, v in contents(output).items() if "/" in k} == {
        k.partition("/")[2]: v for k, v in contents(whole).items() if "/" in k
    }
