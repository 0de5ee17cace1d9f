"""`crossdock check`, and what an export says about where its output went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossdock.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-kjv"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    assert run("export", EXAMPLE, "--to", "hf", "-o", tmp_path / "out", "--no-progress").exit_code == 0
    return tmp_path / "out"


def test_as_written(output: Path) -> None:
    result = run("check", output)
    assert (result.exit_code, result.stdout.splitlines()[-1].startswith("as written  ")) == (0, True)
    assert "checked      the size and the sha256 of every file" in result.stdout
    assert "not checked  whether this is what was trained" in result.stdout
    report = json.loads(run("check", output, "--json").stdout)
    assert report["ok"]
    assert {file["status"] for file in report["files"]} == {"equal"}


def test_a_damaged_tensor(output: Path) -> None:
    tensors = json.loads(output.with_name("out.manifest.json").read_bytes())["tensors"]
    last = max(tensors, key=lambda one: one["offset"])["name"]
    data = bytearray((output / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (output / "model.safetensors").write_bytes(data)
    result = run("check", output)
    assert result.exit_code == 1
    assert f"model.safetensors: tensor {last} differs" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("NOT AS WRITTEN  ")
    report = json.loads(run("check", output, "--json").stdout)
    assert (report["ok"], report["files"][0]["tensors"]) == (False, [last])


def test_without_a_manifest(output: Path) -> None:
    output.with_name("out.manifest.json").unlink()
    result = run("check", output)
    assert result.exit_code == 2
    assert "no manifest lies beside this output" in result.stderr


def test_an_export_lists_what_it_keeps(output: Path) -> None:
    (output / "README.md").write_text("card")
    result = run("export", EXAMPLE, "--to", "hf", "-o", output, "--force", "--no-progress")
    assert result.exit_code == 0
    assert "kept      README.md" in result.stdout
    assert (output / "README.md").read_text() == "card"


@pytest.mark.parametrize("output", ["-", "s3://bucket/x.gguf"])
def test_what_is_not_a_local_path_is_refused_before_the_source_is_opened(output: str) -> None:
    result = run("export", "/no/such/source", "--to", "gguf", "-o", output)
    assert result.exit_code == 2
    assert "Invalid value for '-o'" in result.stderr


def test_the_name_in_a_folder_is_in_every_line(tmp_path: Path) -> None:
    result = run("export", EXAMPLE, "--to", "gguf", "-o", f"{tmp_path}/", "--no-progress")
    assert result.exit_code == 0
    assert f"written  {tmp_path}/tiny-kjv.gguf" in result.stdout
    assert f"crossdock verify {tmp_path}/tiny-kjv.gguf" in result.stdout
