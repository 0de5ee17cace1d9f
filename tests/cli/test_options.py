"""Values of options, their spellings, and what is said about wrong ones."""

import click
import pytest
from click.testing import CliRunner

from crossdock.cli import main, options


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
    assert options.size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "5XB", "1e9", "٥GB", "1GB2", "9" * 41, "2000000TiB", "0.1B"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a size|is too (small|large)"):
        options.size(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [("bf16", "bfloat16"), ("f32", "float32"), ("torch.float16", "float16"), ("Q8-0", "q8_0")],
)
def test_dtype(text: str, name: str) -> None:
    assert options.dtype(text) == name
    assert options.dtype_or_auto(text) == name


def test_auto_is_a_dtype_but_no_quantisation() -> None:
    assert options.dtype_or_auto("auto") == "auto"
    with pytest.raises(click.BadParameter, match="no dtype or quantisation is called 'auto'"):
        options.dtype("auto")


def usage(*args: str) -> str:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"crossdock {args[0]} --help" in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["scan", "x", "--jsno"], "Did you mean '--json'?"),
        (["export", "x", "--max_shard_sise", "1GB"], "Did you mean '--max-shard-size'?"),
        (["plan", "x", "--dtype", "bf61"], "did you mean bf16"),
        (["plan", "x", "-q", "q4km"], "did you mean q4_k_m"),
        (["plan", "x", "--to", "hf", "-q", "awq"], "fp8, fp8_static (hf); fp8, w8a16, w4a16 (trtllm)"),
        (["plan", "x", "--workers", "0"], "at least 1"),
        (["plan", "x", "--workers", "-3"], "-3 is too small"),
        (["plan", "x", "--memory", "lots"], "'lots' is not a size; write it like 5GB, 500MB or 2GiB"),
        (["plan", "x", "--set", "hidden_size"], "'hidden_size' is not of the form KEY=VALUE"),
        (["plan", "x", "--set", "a=1", "--set", "a=2"], "a is given twice with different values"),
        (["plan", "x"], "Missing option '--to'"),
        (["export", "x", "--hash", "md5", "--to", "gguf"], "'xxh3', 'sha256'"),
        (["scan"], "Missing argument 'PATH'"),
    ],
)
def test_usage_errors(args: list[str], said: str) -> None:
    assert said in usage(*args)


def test_near_command() -> None:
    result = CliRunner().invoke(main, ["exprot"])
    assert result.exit_code == 2
    assert "there is no command 'exprot'; did you mean 'export'?" in result.stderr
    assert "did you mean" not in CliRunner().invoke(main, ["zzzz"]).stderr


@pytest.mark.parametrize("option", ["--max_shard_size", "--max-shard_size", "--max-shard-size"])
def test_underscores(option: str) -> None:
    assert "Invalid value for '--max-shard-size': 'x' is not a size" in usage("plan", "src", option, "x")
