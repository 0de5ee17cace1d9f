"""`crossdock check`: an output against its manifest alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_files import write_llama

import crossdock
from crossdock.errors import FormatError, NotACheckpointError, UsageError


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a file with their manifests, and no source beside them."""
    folder = tmp_path_factory.mktemp("outputs")
    source = write_llama(folder / "source")
    checkpoint = crossdock.open(source)
    crossdock.run(crossdock.plan(checkpoint, "hf", max_shard_size="300kB"), folder / "hf")
    crossdock.run(crossdock.plan(checkpoint, "gguf"), folder / "model.gguf")
    shutil.rmtree(source)
    return folder


@pytest.fixture
def copy(outputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(outputs, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["hf", "model.gguf"])
def test_an_output_as_it_was_written(copy: Path, name: str) -> None:
    for path in (copy / name, copy / f"{name}.manifest.json"):
        report = crossdock.check(path)
        assert report.ok
        assert {file.status for file in report.files} == {"equal"}
        assert report.version == 3


def test_every_hash_is_that_of_a_file(copy: Path) -> None:
    for name in ("hf", "model.gguf"):
        manifest = json.loads((copy / f"{name}.manifest.json").read_bytes())
        for file in manifest["target"]["files"]:
            path = copy / name / file["name"] if name == "hf" else copy / file["name"]
            data = path.read_bytes()
            assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        for tensor in manifest["tensors"]:
            path = copy / name / tensor["file"] if name == "hf" else copy / tensor["file"]
            assert tensor["offset"] + tensor["bytes"] <= path.stat().st_size


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def first_shard(folder: Path) -> Path:
    return min((folder / "hf").glob("model-*.safetensors"))


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a bit of a tensor": (lambda d: flip(first_shard(d), -1), "different", "model-00001"),
    "a bit of a header": (lambda d: flip(first_shard(d), 20), "different", "model-00001"),
    "a bit of the configuration": (lambda d: flip(d / "hf/config.json", 5), "different", "config.json"),
    "a byte more": (lambda d: longer(d / "hf/config.json"), "different", "config.json"),
    "a file less": (lambda d: (d / "hf/config.json").unlink(), "missing", "config.json"),
    "a file more": (lambda d: (d / "hf/README.md").write_text("new"), "unexpected", "README.md"),
    "a folder more": (lambda d: (d / "hf/.git").mkdir(), "unexpected", ".git"),
    "a shard cut short": (lambda d: first_shard(d).write_bytes(b"123"), "different", "model-00001"),
    "a folder instead": (lambda d: folder_instead(d / "hf/config.json"), "missing", "config.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_differs_is_named(copy: Path, name: str) -> None:
    damage, status, file = DAMAGES[name]
    damage(copy)
    report = crossdock.check(copy / "hf")
    assert not report.ok
    wrong = [one for one in report.files if one.status != "equal"]
    assert [(one.status, one.name.startswith(file)) for one in wrong] == [(status, True)]


@pytest.mark.parametrize("name", ["hf", "model.gguf"])
def test_the_damaged_tensor_is_named(copy: Path, name: str) -> None:
    manifest = json.loads((copy / f"{name}.manifest.json").read_bytes())
    tensor = manifest["tensors"][7]
    path = copy / name / tensor["file"] if name == "hf" else copy / name
    flip(path, tensor["offset"] + tensor["bytes"] // 2)
    wrong = [one for one in crossdock.check(copy / name).files if one.status != "equal"]
    assert [one.tensors for one in wrong] == [(tensor["name"],)]
    flip(path, tensor["offset"] + tensor["bytes"] // 2)
    flip(path, 30)
    wrong = [one for one in crossdock.check(copy / name).files if one.status != "equal"]
    assert [one.tensors for one in wrong] == [()]
    assert "header" in wrong[0].why


def as_version_1(path: Path, single: bool) -> None:
    """A manifest as crossdock wrote it before there was a version in it."""
    old = json.loads(path.read_bytes())
    del old["manifest"], old["tokenizer"], old["target"]["single_file"]
    for file in old["target"]["files"]:
        del file["sha256"]
        file["name"] = "model.gguf" if single else file["name"]
    for tensor in old["tensors"]:
        del tensor["offset"]
        tensor["file"] = "model.gguf" if single else tensor["file"]
    path.write_text(json.dumps(old))


@pytest.mark.parametrize("name", ["hf", "renamed.gguf"])
def test_a_manifest_of_version_1(copy: Path, name: str) -> None:
    if name != "hf":
        (copy / "model.gguf").rename(copy / name)
        (copy / "model.gguf.manifest.json").rename(copy / f"{name}.manifest.json")
    offset = json.loads((copy / f"{name}.manifest.json").read_bytes())["tensors"][3]
    as_version_1(copy / f"{name}.manifest.json", name != "hf")
    report = crossdock.check(copy / name)
    assert (report.ok, report.version) == (True, 1)
    assert any("no hash of files" in sentence for sentence in report.not_checked)
    flip(copy / name / offset["file"] if name == "hf" else copy / name, offset["offset"])
    wrong = [one for one in crossdock.check(copy / name).files if one.status != "equal"]
    assert [one.tensors for one in wrong] == [(offset["name"],)]


def test_a_manifest_of_version_2(copy: Path) -> None:
    path = copy / "model.gguf.manifest.json"
    document = json.loads(path.read_bytes()) | {"manifest": 2}
    del document["unproven"], document["target"]["file_hashes"]
    path.write_text(json.dumps(document))
    report = crossdock.check(copy / "model.gguf")
    assert (report.ok, report.version, report.checked) == (True, 2, ("the size and the sha256 of every file",))
    flip(copy / "model.gguf", 40)
    assert not crossdock.check(copy / "model.gguf").ok


@pytest.mark.parametrize(("to", "name"), [("hf", "hf"), ("gguf", "model.gguf")])
def test_an_output_without_hashes_of_its_files(to: str, name: str, tmp_path: Path) -> None:
    """Tensors and small files are proven; what is not is said; everything else of the manifest is the same."""
    checkpoint = crossdock.open(write_llama(tmp_path / "source"))
    for folder, file_hashes in (("with", "sha256"), ("without", "none")):
        crossdock.run(crossdock.plan(checkpoint, to), tmp_path / folder / name, file_hashes=file_hashes)
    known, bare = (
        json.loads((tmp_path / folder / f"{name}.manifest.json").read_bytes()) for folder in ("with", "without")
    )
    hashed = {file["name"]: file["sha256"] for file in bare["target"]["files"]}
    assert hashed == {
        file["name"]: None if file["name"].endswith((".safetensors", ".gguf")) else file["sha256"]
        for file in known["target"]["files"]
    }
    assert (known["target"].pop("file_hashes"), bare["target"].pop("file_hashes")) == ("sha256", "none")
    assert known | {"target": None} == bare | {"target": None}

    output = tmp_path / "without" / name
    report = crossdock.check(output)
    assert report.ok
    assert any("--file-hashes none" in sentence for sentence in report.not_checked)
    weights = output / "model.safetensors" if to == "hf" else output
    tensor = bare["tensors"][2]
    flip(weights, tensor["offset"])
    assert [file.tensors for file in crossdock.check(output).files if file.status != "equal"] == [(tensor["name"],)]
    flip(weights, tensor["offset"])
    if to == "hf":
        flip(output / "config.json", 5)
        assert [file.name for file in crossdock.check(output).files if file.status != "equal"] == ["config.json"]


EVIL: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a name outside": lambda m: m["target"]["files"][0].update(name="../../etc/passwd"),
    "an absolute name": lambda m: m["target"]["files"][0].update(name="/etc/passwd"),
    "no hash": lambda m: m["target"]["files"][0].update(sha256="0"),
    "a hash that is left out": lambda m: m["target"]["files"][0].update(sha256=None),
    "no files": lambda m: m["target"].update(files=[]),
    "files that are a number": lambda m: m["target"].update(files=3),
    "a size that is text": lambda m: m["target"]["files"][0].update(bytes="3"),
    "another version": lambda m: m.update(manifest=4),
    "a version that is text": lambda m: m.update(manifest="2"),
    "another hash": lambda m: m.update(hash="md5"),
    "a tensor elsewhere": lambda m: m["tensors"][0].update(file="other"),
    "no target": lambda m: m.pop("target"),
    "a tensor before the file": lambda m: m["tensors"][0].update(offset=-1),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_manifest_that_is_not_one_is_refused(copy: Path, name: str) -> None:
    path = copy / "model.gguf.manifest.json"
    manifest = json.loads(path.read_bytes())
    EVIL[name](manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="not a manifest of crossdock"):
        crossdock.check(copy / "model.gguf")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 5000, b'{"manifest": 2}'])
def test_a_manifest_that_is_not_json_is_refused(copy: Path, text: bytes) -> None:
    (copy / "hf.manifest.json").write_bytes(text)
    with pytest.raises(FormatError):
        crossdock.check(copy / "hf", manifest=copy / "hf.manifest.json")


def test_a_link_out_of_the_folder_is_not_followed(copy: Path) -> None:
    kept = copy / "hf" / "config.json"
    kept.rename(copy / "elsewhere.json")
    kept.symlink_to(copy / "elsewhere.json")
    wrong = [one for one in crossdock.check(copy / "hf").files if one.status != "equal"]
    assert [(one.name, one.why) for one in wrong] == [("config.json", "a link that leads out of the folder")]


def test_without_output_or_manifest(copy: Path) -> None:
    with pytest.raises(NotACheckpointError, match="the output does not exist"):
        crossdock.check(copy / "nothing")
    (copy / "hf.manifest.json").rename(copy / "moved.json")
    with pytest.raises(UsageError, match="no manifest lies beside"):
        crossdock.check(copy / "hf")
    assert crossdock.check(copy / "hf", manifest=copy / "moved.json").ok
    with pytest.raises(UsageError, match="of another output"):
        crossdock.check(copy / "model.gguf", manifest=copy / "moved.json")
