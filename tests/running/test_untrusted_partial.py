"""What an unfinished output holds is not believed, and nothing in it leads elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.errors import CrossdockError, InputError, UsageError
from crossdock.running.journal import NAME

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
TARGETS = ["hf", "gguf"]


class Stop(Exception):
    """Ends a run in the middle."""


def planned(to: str) -> crossdock.Plan:
    return crossdock.plan(crossdock.open(CHECKPOINT), to, tokenizer=TOKENIZER)


def half_done(to: str, output: Path) -> Path:
    """An output whose run was stopped after most of its tensors; the folder that holds it."""
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Stop

    with pytest.raises(Stop):
        crossdock.run(planned(to), output, memory=1 << 20, workers=1, progress=stop)
    return output.with_name(output.name + ".partial")


def contents(output: Path) -> dict[str, bytes]:
    files = [output] if output.is_file() else [file for file in sorted(output.rglob("*")) if file.is_file()]
    return {file.name if output.is_dir() else "": file.read_bytes() for file in files}


def weights(partial: Path) -> Path:
    return max((f for f in partial.iterdir() if f.is_file()), key=lambda f: f.stat().st_size)


def finished_places(to: str, partial: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of each tensor that the journal calls finished."""
    import json

    plan = planned(to)
    lines = (partial / NAME).read_text().splitlines()[1:]
    done = [plan.tensors[json.loads(line)["tensor"]] for line in lines]
    return [(tensor.offset, tensor.nbytes) for tensor in done]


@pytest.mark.parametrize("to", TARGETS)
def test_bytes_that_changed_between_two_runs_are_written_again(to: str, tmp_path: Path) -> None:
    crossdock.run(planned(to), tmp_path / "straight")
    partial = half_done(to, tmp_path / "out")
    places = finished_places(to, partial)
    assert len(places) > 3
    with weights(partial).open("r+b") as file:
        for offset, nbytes in (places[0], places[-1]):
            file.seek(offset + nbytes // 2)
            byte = file.read(1)[0]
            file.seek(offset + nbytes // 2)
            file.write(bytes([byte ^ 1]))
    report = crossdock.run(planned(to), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert report.resumed == len(places) - 2
    assert sum("written again" in warning for warning in report.warnings) == 2


@pytest.mark.parametrize("to", TARGETS)
def test_any_byte_of_an_unfinished_output_may_change(to: str, tmp_path: Path) -> None:
    """Headers and padding, too."""
    crossdock.run(planned(to), tmp_path / "straight")
    partial = half_done(to, tmp_path / "out")
    for file in partial.iterdir():
        if file.name != NAME:
            file.write_bytes(bytes(byte ^ 0x55 for byte in file.read_bytes()))
    crossdock.run(planned(to), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_that_is_not_of_the_run_is_refused_by_name(to: str, tmp_path: Path) -> None:
    partial = half_done(to, tmp_path / "out")
    (partial / "thesis.txt").write_text("mine")
    (partial / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.txt"):
            crossdock.run(planned(to), tmp_path / "out", force=force)
    other = crossdock.plan(crossdock.open(CHECKPOINT), to, tokenizer=TOKENIZER, dtype="float16")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        crossdock.run(other, tmp_path / "out", force=True)
    assert (partial / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_folder_of_that_name_that_no_run_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        crossdock.run(planned("hf"), tmp_path / "out")
    assert (tmp_path / "out.partial/thesis.txt").read_text() == "mine"


def link_to_weights(partial: Path, outside: Path) -> None:
    name = weights(partial)
    name.unlink()
    name.symlink_to(outside)


def hard_link_to_weights(partial: Path, outside: Path) -> None:
    name = weights(partial)
    outside.write_bytes(name.read_bytes())
    name.unlink()
    name.hardlink_to(outside)


def pipe_for_weights(partial: Path, outside: Path) -> None:
    name = weights(partial)
    name.unlink()
    os.mkfifo(name)


def link_to_the_journal(partial: Path, outside: Path) -> None:
    outside.write_bytes((partial / NAME).read_bytes())
    (partial / NAME).unlink()
    (partial / NAME).symlink_to(outside)


def pipe_for_the_journal(partial: Path, outside: Path) -> None:
    (partial / NAME).unlink()
    os.mkfifo(partial / NAME)


def link_to_the_manifest(partial: Path, outside: Path) -> None:
    (partial / (NAME + "-manifest")).symlink_to(outside)


def link_for_the_folder(partial: Path, outside: Path) -> None:
    moved = partial.with_name("elsewhere")
    partial.rename(moved)
    partial.symlink_to(moved)


@pytest.mark.parametrize(
    "plant",
    [link_to_weights, hard_link_to_weights, pipe_for_weights, link_to_the_journal, pipe_for_the_journal,
     link_to_the_manifest, link_for_the_folder],
    ids=lambda plant: plant.__name__,
)  # fmt: skip
@pytest.mark.parametrize("to", TARGETS)
def test_links_and_pipes_in_an_unfinished_output_are_refused(
    plant: Callable[[Path, Path], None], to: str, tmp_path: Path
) -> None:
    partial = half_done(to, tmp_path / "out")
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    plant(partial, outside)
    before = outside.read_bytes()
    with pytest.raises(UsageError):
        crossdock.run(planned(to), tmp_path / "out")
    assert outside.read_bytes() == before
    assert not (tmp_path / "out").exists()


def copy_of_the_source(folder: Path) -> Path:
    crossdock.run(planned("hf"), folder)
    return folder


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_other_file(file: Path) -> None:
    """Another file of the same size and time."""
    stat = file.stat()
    other = file.with_name("other")
    other.write_bytes(bytes(stat.st_size))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)


def as_link(file: Path) -> None:
    moved = file.with_name("moved")
    moved.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(moved)


def touched(file: Path) -> None:
    os.utime(file, ns=(0, 0))


def gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("change", [as_pipe, as_other_file, as_link, touched, gone], ids=lambda one: one.__name__)
def test_a_source_that_changes_after_the_plan_is_an_error_and_never_waited_for(
    change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    source = copy_of_the_source(tmp_path / "source")
    plan = crossdock.plan(crossdock.open(source), "hf")
    change(source / name)
    with pytest.raises(InputError, match=name):
        crossdock.run(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_link_that_leads_out_of_the_source_is_refused(name: str, tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path / "source")
    secret = tmp_path / "secret"
    secret.write_bytes((source / name).read_bytes() if (source / name).exists() else b"key")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(secret)
    with pytest.raises(CrossdockError, match=name):
        crossdock.plan(crossdock.open(source), "hf")
    # the same link to a file inside is followed
    (source / name).unlink()
    (source / "kept").mkdir()
    secret.rename(source / "kept" / "file")
    (source / name).symlink_to("kept/file")
    crossdock.run(crossdock.plan(crossdock.open(source), "hf"), tmp_path / "out")
    assert (tmp_path / "out" / name).is_file()
    assert not (tmp_path / "out" / name).is_symlink()


def test_a_tokenizer_folder_is_held_to_its_links_too(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    for file in TOKENIZER.iterdir():
        (tmp_path / "tok" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "secret").write_text("key")
    (tmp_path / "tok/chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"chat_template\.jinja"):
        crossdock.plan(crossdock.open(CHECKPOINT), "hf", tokenizer=tmp_path / "tok")


def test_a_snapshot_of_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    copy_of_the_source(tmp_path / "source")
    model = tmp_path / "hub/models--a--b"
    (model / "blobs").mkdir(parents=True)
    snapshot = model / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for number, file in enumerate((tmp_path / "source").iterdir()):
        file.rename(model / f"blobs/{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    crossdock.run(crossdock.plan(crossdock.open(snapshot), "hf"), tmp_path / "out")
    assert crossdock.verify(tmp_path / "out", crossdock.open(snapshot)).ok
    # another model's blobs are not this model's
    (tmp_path / "hub/models--c--d/blobs").mkdir(parents=True)
    (tmp_path / "hub/models--c--d/blobs/x").write_text("{}")
    (snapshot / "chat_template.jinja").symlink_to("../../../models--c--d/blobs/x")
    with pytest.raises(InputError, match="a link out of the folder"):
        crossdock.open(snapshot)
