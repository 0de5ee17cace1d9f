"""What people type who come from other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossdock.cli.app import main
from crossdock.cli.guesses import COMMANDS, ENGINES, no_such_option, rewritten
from crossdock.cli.options import target_format
from crossdock.formats import registry
from crossdock.formats.gguf.container import read_header

ROOT = Path(__file__).resolve().parents[2]
MODEL, TOKENIZER = ROOT / "examples" / "tiny-kjv", ROOT / "examples" / "tiny-kjv-tokenizer"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("convert m --to hf -o x", "export m --to hf -o x"),
        ("info m", "inspect m"),
        ("help export", "export --help"),
        ("help", "--help"),
        ("export m -o x.gguf", "export --to gguf m -o x.gguf"),
        ("export m --output=x.gguf", "export --to gguf m --output=x.gguf"),
        ("export m -o x.gguf --to hf", "export m -o x.gguf --to hf"),
        ("export m --outfile x.gguf --outtype f16", "export --to gguf m --output x.gguf --dtype f16"),
        ("plan m --to gguf --outtype=Q8_0", "plan m --to gguf --quantize=Q8_0"),
        ("verify x.gguf --against m", "verify x.gguf --against m"),
        ("export m --outtype", "export m --outtype"),
        ("", ""),
    ],
)
def test_words_of_other_tools_are_put_into_our_own(typed: str, meant: str) -> None:
    assert rewritten(typed.split()) == meant.split()


def test_a_word_that_stands_for_another_is_not_a_word_of_ours() -> None:
    assert not set(COMMANDS) & set(main.commands)
    assert set(COMMANDS.values()) <= set(main.commands)
    assert not set(ENGINES) & set(registry.targets())
    assert set(ENGINES.values()) <= set(registry.targets())


@pytest.mark.parametrize(("engine", "format"), [("vllm", "hf"), ("Ollama", "gguf"), ("TensorRT-LLM", "trtllm")])
def test_an_engine_stands_for_the_format_that_it_loads(engine: str, format: str) -> None:
    assert target_format(engine) == format


@pytest.mark.parametrize(
    ("option", "known", "says"),
    [
        ("--hf-path", ["--hash", "--help"], "no option --hf-path"),
        ("--quantise", ["--quantize", "--help"], "no option --quantise; did you mean --quantize?"),
        ("--imatrix", ["--iteration"], "no option --imatrix: importance matrices are not supported"),
    ],
)
def test_only_what_is_very_like_an_option_is_proposed(option: str, known: Sequence[str], says: str) -> None:
    assert no_such_option(option, known) == says


def test_an_output_without_a_name_is_named_after_its_source_and_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, name in (
        (["--to", "gguf", "-q", "q8_0"], "tiny-kjv-q8_0.gguf"),
        (["--to", "gguf"], "tiny-kjv-gguf.gguf"),
        (["--to", "hf", "--dtype", "bf16"], "tiny-kjv-bf16-hf"),
    ):
        result = CliRunner().invoke(main, ["export", str(MODEL), *words, "--tokenizer", str(TOKENIZER)])
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).exists()


def test_the_format_follows_from_the_name_of_the_output(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    words = ["convert", str(MODEL), "--outfile", str(out), "--outtype", "q8_0", "--tokenizer", str(TOKENIZER)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert read_header(out).metadata["general.file_type"] == 7
    assert "ollama create x -f Modelfile" in result.output


def test_plan_checks_the_place_of_the_output_too(tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"x")
    words = ["plan", str(MODEL), "--to", "gguf", "--tokenizer", str(TOKENIZER), "-o"]
    assert CliRunner().invoke(main, [*words, str(tmp_path / "new.gguf")]).exit_code == 0
    result = CliRunner().invoke(main, [*words, str(tmp_path / "there.gguf")])
    assert result.exit_code == 2
    assert "the output exists" in result.output
