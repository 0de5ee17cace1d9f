"""Where an output goes: what a path means, what is refused before a byte is written, what `--force` leaves alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_files import contents, tensors, write_llama

import crossdock
from crossdock.errors import UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "in" / "my-model")


def export(source: Path, output: str | Path, to: str = "hf", **options: Any) -> crossdock.RunReport:
    return crossdock.run(crossdock.plan(crossdock.open(source), to), output, **options)


@pytest.mark.parametrize("there", [True, False])
def test_one_file_in_a_folder_gets_the_name_of_the_source(source: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("kept")
    report = export(source, f"{tmp_path}/out/", "gguf")
    assert report.output == tmp_path / "out" / "my-model.gguf"
    assert crossdock.check(report.output).ok
    with pytest.raises(UsageError, match="the output exists"):
        export(source, f"{tmp_path}/out/", "gguf")


def test_the_working_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export(source, ".", "gguf").output == tmp_path / "here" / "my-model.gguf"
    for output in (".", "./", "..", str(tmp_path / "here")):
        for force in (True, False):
            with pytest.raises(UsageError, match=r"the folder that this command runs in|would overwrite the source"):
                export(source, output, force=force)
    assert sorted(os.listdir()) == ["my-model.gguf", "my-model.gguf.manifest.json"]


@pytest.mark.parametrize(
    "output", ["s3://bucket/x.gguf", "hf://me/model", "https://x.y/z", "gs:/bucket/x", "file:///x"]
)
def test_addresses_are_refused_by_name(source: Path, tmp_path: Path, output: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (output, Path(output)):
        with pytest.raises(UsageError, match=f"{output.split(':')[0]}:// is an address"):
            export(source, text)
    assert sorted(os.listdir()) == ["in"]


@pytest.mark.parametrize("output", ["-", "", "a\0b"])
def test_what_is_not_a_path_is_refused(source: Path, output: str) -> None:
    with pytest.raises(UsageError, match="output"):
        export(source, output)


def test_a_trailing_slash_is_a_folder(source: Path, tmp_path: Path) -> None:
    assert export(source, f"{tmp_path}/out/").output == tmp_path / "out"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="a file, not a folder"):
        export(source, f"{tmp_path}/file/", force=True)


def test_an_empty_folder_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(source, tmp_path / "out").kept == ()
    assert crossdock.check(tmp_path / "out").ok


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("character", ["x", "ж"])
def test_names_near_the_limit(source: Path, tmp_path: Path, to: str, character: str) -> None:
    """A name that fits is exported with all that belongs to it; one byte more is refused before anything is made."""
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".crossdock-replaced")
    name = character * (longest // len(character.encode()))
    for force in (False, True):
        export(source, tmp_path / name, to, force=force)
        assert crossdock.check(tmp_path / name).ok
    for more in (1, 10, 1000):
        before = set(os.listdir(tmp_path))
        with pytest.raises(UsageError, match="too long"):
            export(source, tmp_path / (name + "y" * (more + 1)), to)
        assert set(os.listdir(tmp_path)) == before


def clone(folder: Path, *, config: bool = True) -> dict[str, bytes]:
    """What a person has in a folder besides a model."""
    (folder / ".git" / "refs").mkdir(parents=True)
    (folder / "figures").mkdir()
    files = {"README.md": b"card", ".git/HEAD": b"ref", "thesis.tex": b"years", "figures/a.png": b"png"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / ".git" / "link").symlink_to("HEAD")
    if config:
        (folder / "config.json").write_text("{}")
        (folder / "model-00001-of-00002.safetensors").write_text("an older shard")
    return files


def survived(folder: Path, files: dict[str, bytes]) -> bool:
    return {name: (folder / name).read_bytes() for name in files} == files and (folder / ".git/link").is_symlink()


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "two renames"])
def test_force_replaces_a_model_and_nothing_else(
    source: Path, tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("crossdock.running.publish.exchange", lambda *_: False)
    output = tmp_path / "clone"
    files = clone(output)
    with pytest.raises(UsageError, match="the output exists"):
        export(source, output)
    for _ in range(2):
        report = export(source, output, force=True)
        assert report.kept == (".git", "README.md", "figures", "thesis.tex")
        assert survived(output, files)
        assert not (output / "model-00001-of-00002.safetensors").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clone", "clone.manifest.json", "in"]
    crossdock.open(output)


def test_what_only_the_manifest_knows_is_replaced(source: Path, tmp_path: Path) -> None:
    """A file that no rule covers goes when the manifest beside the folder says that it was written."""
    output = tmp_path / "out"
    export(source, output)
    manifest = tmp_path / "out.manifest.json"
    (output / "model.safetensors").rename(output / "odd.bin")
    manifest.write_text(manifest.read_text().replace("model.safetensors", "odd.bin"))
    assert export(source, output, force=True).kept == ()
    assert not (output / "odd.bin").exists()


def blocked(output: Path) -> None:
    clone(output)
    (output / "model.safetensors").mkdir()


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a thesis": (lambda d: clone(d, config=False), "nothing in this folder is a file of one"),
    "a folder with a file's name": (blocked, "has the name of a file of the output"),
    "a file": (lambda d: d.write_text("x"), "--force does not replace with a folder"),
    "a pipe": (os.mkfifo, "a device or a pipe"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_force_refuses(source: Path, tmp_path: Path, name: str) -> None:
    make, sentence = REFUSED[name]
    make(tmp_path / "out")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=sentence):
        export(source, tmp_path / "out", force=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["", "deeper", "deeper/still"])
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_the_source_is_no_place_for_an_output(source: Path, where: str, to: str) -> None:
    name = where if to == "hf" or not where else f"{where}.gguf"
    for output in (source / name, f"{source / name}/"):
        for force in (True, False):
            with pytest.raises(UsageError, match=r"overwrite the source|inside the source"):
                export(source, output, to, force=force)


class Killed(BaseException):
    """What a kill is to the code after it, within this process."""


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "two renames"])
def test_killed_at_every_step_nothing_is_lost(
    source: Path, tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's files are in the output, or where the next run takes them from."""
    from crossdock.running import publish

    plan = crossdock.plan(crossdock.open(source), "hf")
    old = crossdock.plan(crossdock.open(write_llama(tmp_path / "old", tensors(seed=2))), "hf")
    crossdock.run(plan, tmp_path / "clean" / "out")
    for last in range(1, 200):
        output = tmp_path / str(last) / "out"
        crossdock.run(old, output)
        files = clone(output, config=False)
        calls = iter(range(1, 1000))

        def counted(real: Any, calls: Any = calls, last: int = last) -> Any:
            def call(*args: Any, **flags: Any) -> Any:
                if next(calls) == last:
                    raise Killed
                return real(*args, **flags)

            return call

        whole = True
        with monkeypatch.context() as patch:
            real = publish.put_in_place

            def put(*args: Any, patch: Any = patch, real: Any = real, counted: Any = counted) -> None:
                for name in ("rename", "replace", "unlink", "fsync", "rmdir", "mkdir"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                patch.setattr(publish, "exchange", counted(publish.exchange) if exchange else lambda *_: False)
                real(*args)

            patch.setattr("crossdock.running.run.put_in_place", put)
            try:
                crossdock.run(plan, output, force=True)
            except Killed:
                whole = False
        if not whole:
            crossdock.run(plan, output, force=True)
        assert survived(output, files), last
        assert {f.name for f in output.parent.iterdir()} == {"out", "out.manifest.json"}, last
        own = {name: digest for name, digest in contents(output).items() if name.removeprefix("out/") not in files}
        assert own.pop("out/.git/link")
        assert own == contents(tmp_path / "clean" / "out"), last
        if whole:
            return
    pytest.fail("the placement never ended")
