"""Mistakes of a first hour: the message names the way out, nothing is written, and --json is JSON all the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossdock.cli import main

ROOT = Path(__file__).resolve().parents[2]
TINY, TOKENIZER = ROOT / "examples" / "tiny-kjv", ROOT / "examples" / "tiny-kjv-tokenizer"


def crossdock(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "source"))


@pytest.mark.parametrize(("to", "name"), [("gguf", "model.gguf"), ("hf", "export")])
def test_an_output_inside_the_source_is_refused(source: Path, to: str, name: str) -> None:
    before = sorted(source.rglob("*"))
    result = crossdock("export", source, "--to", to, "-o", source / name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the output would lie inside the source" in result.stderr
    assert sorted(source.rglob("*")) == before


def test_a_refused_export_says_only_why(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("mine")
    result = crossdock("export", source, "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert (tmp_path / "out.gguf").read_text() == "mine"


def test_an_unknown_pre_tokenizer_names_the_nearest() -> None:
    words = ("plan", TINY, "--to", "gguf", "--tokenizer", TOKENIZER, "--pre-tokenizer")
    result = crossdock(*words, "lama3")
    assert result.exit_code == 3
    assert "expected llama" in result.stderr
    assert len(result.stderr) < 500
    names = crossdock(*words, "list")
    assert names.exit_code == 0
    assert {"llama-bpe", "gpt-2", "qwen2"} <= set(names.stdout.split())


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_a_tokenizer_that_is_much_too_small(tmp_path: Path, to: str) -> None:
    small = Path(shutil.copytree(TOKENIZER, tmp_path / "tok"))
    data = json.loads((small / "tokenizer.json").read_text())
    model = data["model"]
    model["vocab"] = {text: number for text, number in model["vocab"].items() if number < 400}
    model["merges"] = [
        pair
        for pair in model["merges"]
        if "".join(pair if isinstance(pair, list) else pair.split(" ")) in model["vocab"]
    ]
    (small / "tokenizer.json").write_text(json.dumps(data))
    result = crossdock("plan", TINY, "--to", to, "--tokenizer", small)
    assert result.exit_code == 0, result.stderr
    assert "the tokenizer has 400 tokens, the embedding 1,000 rows" in result.stdout
    assert "the tokenizer has" not in crossdock("plan", TINY, "--to", to, "--tokenizer", TOKENIZER).stdout


def test_a_copied_file_that_is_gone_is_called_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert crossdock("export", TINY, "--to", "hf", "-o", out, "--tokenizer", TOKENIZER).exit_code == 0
    (out / "tokenizer.json").unlink()
    result = crossdock("verify", out, "--against", TINY, "--tokenizer", TOKENIZER)
    assert result.exit_code == 1
    assert "tokenizer.json: this file of the output is missing" in result.stdout


def test_a_place_that_takes_no_files() -> None:
    result = crossdock("export", TINY, "--to", "gguf", "-o", "/proc/crossdock.gguf")
    assert result.exit_code == 4
    assert "to do: " in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "PIPE"],
        ["inspect", "/dev/zero"],
        ["scan", "PIPE"],
        ["plan", "PIPE", "--to", "gguf"],
        ["plan", TINY, "--to", "gguf", "--tokenizer", "PIPE"],
        ["plan", TINY, "--to", "hf", "--tokenizer", "/dev/zero"],
        ["plan", TINY, "--to", "hf", "--config", "PIPE"],
        ["export", "/dev/zero", "--to", "hf", "-o", "OUT"],
        ["verify", "PIPE", "--against", TINY],
        ["diff", TINY, "PIPE"],
    ],
)
def test_a_pipe_or_device_is_refused_and_never_waited_for(words: list[object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    named = {"PIPE": tmp_path / "pipe", "OUT": tmp_path / "out"}
    result = crossdock(*(named.get(str(word), word) for word in words))
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["inspect", TINY], 0),
        (["scan", TINY], 0),
        (["plan", TINY, "--to", "gguf"], 0),
        (["export", TINY, "--to", "gguf", "-o", "OUT/a.gguf"], 0),
        (["verify", TINY, "--against", TINY], 2),
        (["diff", TINY, TINY], 0),
        (["inspect", "/nowhere"], 3),
        (["scan", "/nowhere"], 3),
        (["plan", "/nowhere", "--to", "gguf"], 3),
        (["plan", TINY, "--to", "nothing"], 2),
        (["plan", TINY, "--to", "gguf", "--memory", "1kB"], 2),
        (["export", "/nowhere", "--to", "hf", "-o", "OUT/b"], 3),
        (["export", TINY, "--to", "hf", "-o", "/dev/null/x"], 4),
        (["verify", "/nowhere", "--against", TINY], 3),
        (["diff", TINY, "/nowhere"], 3),
        (["split", "/nowhere", "-o", "OUT/c", "--capacity", "10"], 3),
        (["activations", "/nowhere", "--text", "x", "-o", "OUT/d"], None),
        (["inspect", TINY, "--nonsense"], 2),
    ],
)
def test_json_in_success_and_failure(words: list[object], code: int | None, tmp_path: Path) -> None:
    result = crossdock(*(str(word).replace("OUT", str(tmp_path)) for word in words), "--json")
    assert isinstance(json.loads(result.stdout), dict)
    if code is not None:
        assert result.exit_code == code, result.stdout
    assert "Traceback" not in result.output
