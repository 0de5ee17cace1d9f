"""Values of options, their spellings, and what is said about wrong ones."""

import pytest
from click.testing import CliRunner

from crossdock.cli import main
from crossdock.errors import UsageError
from crossdock.options import size as read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5_000_000_000),
        ("500MB", 500_000_000),
        ("2GiB", 2 << 30),
        ("256MiB", 256 << 20),
        ("256mib", 256 << 20),
        ("1.5 kB", 1500),
        ("4096", 4096),
        ("64K", 64_000),
        ("1Ti", 1 << 40),
    ],
)
def test_size(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "5XB", "1e9", "٥GB", "1GB2", "9" * 41, "2000000TiB", "0.1B"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size|is too (small|large)"):
        read_size(text)


def usage(*args: str) -> str:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"crossdock {args[0]} --help" in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["scan", "x", "--jsno"], "did you mean --json?"),
        (["export", "x", "--max_shard_sise", "1GB"], "did you mean --max-shard-size?"),
        (["plan", "x", "--workers", "0"], "at least 1"),
        (["plan", "x", "--workers", "-3"], "-3 is too small"),
        (["plan", "x", "--memory", "lots"], "'lots' is not a size; write it like 5GB, 500MB or 2GiB"),
        (["plan", "x", "--set", "hidden_size"], "'hidden_size' is not of the form KEY=VALUE"),
        (["plan", "x", "--set", "a=1", "--set", "a=2"], "a occurs twice with different values"),
        (["plan", "x"], "Missing option '--to'"),
        (["export", "x", "--hash", "md5", "--to", "gguf"], "'xxh3', 'sha256'"),
        (["scan"], "Missing argument 'PATH'"),
    ],
)
def test_usage_errors(args: list[str], said: str) -> None:
    assert said in usage(*args)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "gguf", "--dtype", "bf61"], "expected bf16"),
        (["--to", "gguf", "-q", "q4km"], "expected -q q4_k_m"),
        (["--to", "hf", "-q", "awq"], "expected -q fp8 or fp8_static"),
        (["--to", "hf", "-q", "q8_0"], "hf has no quantisation q8_0"),
        (["--to", "hf", "--dtype", "i8"], "hf cannot be written as int8"),
        (["--to", "gguf-lora", "--dtype", "bf16"], "gguf-lora cannot be written as bfloat16"),
        (
            ["--to", "hf", "--keep-order"],
            "hf has no option --keep-order\n  to do: leave it out, or --to gguf-checkpoint",
        ),
        (["--to", "gguf", "--fp8-kv-cache"], "leave it out, or --to hf or trtllm, which has it"),
        (["--to", "hf", "--fp8-kv-cache"], "--fp8-kv-cache requires fp8 weights"),
        (["--to", "peft", "--tokenizer", "x"], "peft has no option --tokenizer"),
        (["--to", "trtllm", "--tp", "70", "--pp", "70"], "number of ranks out of range"),
    ],
)
def test_what_a_target_does_not_have_is_refused_before_anything_is_read(words: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, ["plan", "/nowhere", *words])
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr


def test_near_command() -> None:
    result = CliRunner().invoke(main, ["exprot"])
    assert result.exit_code == 2
    assert "unknown command 'exprot'; did you mean 'export'?" in result.stderr
    assert "did you mean" not in CliRunner().invoke(main, ["zzzz"]).stderr


@pytest.mark.parametrize("option", ["--max_shard_size", "--max-shard_size", "--max-shard-size"])
def test_underscores(option: str) -> None:
    assert "Invalid value for '--max-shard-size': 'x' is not a size" in usage("plan", "src", option, "x")
