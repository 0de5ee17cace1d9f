"""Sizes, tables, trees and progress lines as text."""

import json
from pathlib import Path

import numpy as np
import pytest

from crossdock.cli import progress, show, tree
from crossdock.errors import Problem


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (99_940, "99.9 kB"),
        (123_456, "123 kB"),
        (999_600, "1 MB"),
        (1_320_000_000, "1.32 GB"),
        (1_400_000_000_000, "1.4 TB"),
        (25 * 10**15, "25000 TB"),
    ],
)
def test_nbytes(size: int, text: str) -> None:
    assert show.nbytes(size) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1_500, "1.5 K"), (7_615_616_512, "7.62 B"), (671 * 10**9, "671 B")],
)
def test_about(value: int, text: str) -> None:
    assert show.about(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.01 s"),
        (0.42, "0.42 s"),
        (9.96, "10 s"),
        (12.4, "12 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_memory() -> None:
    assert [show.memory(n) for n in (512, 256 << 20, 3 << 29)] == ["512 B", "256 MiB", "1.5 GiB"]


def test_clean() -> None:
    assert show.clean("a\x1b]0;x\x07\nb\u202e\udcffß[0]") == r"a\x1b]0;x\x07\nb\u202e\udcffß[0]"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("name", "size"), [("a", "1"), ("long\x1bname", "12345")], "<>")
    assert capsys.readouterr().out == "  name           size\n  a                 1\n  long\\x1bname  12345\n"
    show.table(("name",), [], "<")
    assert capsys.readouterr().out == ""


def test_table_wraps_its_last_column_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("key", "one two three four five six seven eight")]
    show.table((), rows, "<<")
    assert capsys.readouterr().out == "  key  one two three four five six seven eight\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show.table((), rows, "<<")
    assert capsys.readouterr().out == "  key  one two three four five six\n       seven eight\n"


def test_reasons() -> None:
    names = {f"w{i}": "big" for i in range(9)} | {"x": "odd"}
    assert show.reasons(names) == [("big", "w0, w1, w2, … 6 more"), ("odd", "x")]


def test_json_has_no_nan_and_no_objects(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_json(
        {
            "nan": float("nan"),
            "inf": -np.float32("inf"),
            "path": Path("a/b\udcff"),
            "numbers": np.arange(3, dtype=np.uint8),
            "many": np.zeros(1000, np.float32),
            "problem": Problem("x"),
            "set": frozenset({1}),
            1: b"x",
        }
    )
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "nan": "nan",
        "inf": "-inf",
        "path": "a/b\udcff",
        "numbers": [0, 1, 2],
        "many": "float32 array of 1000",
        "problem": {"what": "x", "where": "", "expected": "", "got": "", "cause": "", "fix": "", "check": ""},
        "set": [1],
        "1": "b'x'",
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([3], "3"),
        ([0, 1], "{0-1}"),
        ([2, 0, 1, 5], "{0-2,5}"),
        ([0, 2, 4, 6], "{0-6 by 2}"),
        ([1, 3], "{1,3}"),
        ([0, 1, 7, 8], "{0-1,7-8}"),
    ],
)
def test_ranges(values: list[int], text: str) -> None:
    assert tree.ranges(values) == text


def test_tree() -> None:
    names: list[tuple[str, tuple[int, ...], str]] = [("model.embed.weight", (8, 4), "float32")]
    for layer in range(3):
        names.append((f"model.layers.{layer}.norm.weight", (4,), "float32"))
        experts = 2 if layer else 0
        names += [(f"model.layers.{layer}.mlp.experts.{e}.up", (6, 4), "bfloat16") for e in range(experts)]
    names.append(("model.layers.0.mlp.up", (16, 4), "bfloat16"))
    groups = tree.collapse(names)
    assert sum(one.count for one in groups) == len(names)
    assert sum(one.parameters for one in groups) == 32 + 3 * 4 + 4 * 24 + 64
    assert [(text, one and (one.count, one.shape)) for text, one in tree.lines(groups)] == [
        ("model", None),
        ("  embed.weight", (1, (8, 4))),
        ("  layers.{0-2}.norm.weight", (3, (4,))),
        ("  layers.{1-2}.mlp.experts.{0-1}.up", (4, (6, 4))),
        ("  layers.0.mlp.up", (1, (16, 4))),
    ]


def test_tree_of_strange_names() -> None:
    names = [("{}.{}", (1,), "int8"), ("..", (1,), "int8"), ("", (1,), "int8"), ("9" * 5000, (1,), "int8")]
    groups = tree.collapse(names)
    assert sum(one is not None for _, one in tree.lines(groups)) == 4


def test_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = progress.Lines("export", lambda: now)
    for now, done in (  # noqa: B007
        (1, 1_000_000_000),
        (29, 2_000_000_000),
        (31, 4_100_000_000),
        (50, 5 * 10**9),
        (61, 7 * 10**9),
    ):
        lines(done, 10**10, "blk.0")
    assert capsys.readouterr().err.splitlines() == [
        "export: 4.1 GB of 10 GB (41%), 100 MB/s, 59 s left",
        "export: 7 GB of 10 GB (70%), 98.4 MB/s, 30 s left",
    ]


def test_progress_lines_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = progress.Lines("verify", lambda: now)
    now = 40.0
    lines(0, 0, "")
    assert capsys.readouterr().err == "verify: 0 B of 0 B (0%)\n"
