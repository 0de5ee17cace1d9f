"""The data files read aloud: no long lines, no tables inside strings, no keys that differ by blanks; all documented."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crossdock.layout.keys import KEY_TABLES
from crossdock.layout.rules import RULE_KEYS, TENSOR_TABLES
from crossdock.model.expressions import FUNCTIONS
from crossdock.plugins import DATA

DOCUMENT = (Path(__file__).parents[2] / "docs/notation.md").read_text()
FILES = sorted((*DATA.glob("families/*.toml"), *DATA.glob("layouts/*.toml")), key=str)
IDS = [f"{file.parent.name}/{file.stem}" for file in FILES]


def keys_of(table: Mapping[str, Any]) -> Iterator[str]:
    """Every key at any depth."""
    for key, content in table.items():
        yield key
        if isinstance(content, Mapping):
            yield from keys_of(content)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_no_line_is_longer_than_140_characters(file: Path) -> None:
    assert [line for line in file.read_text().splitlines() if len(line) > 140] == []


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_no_key_ends_in_a_blank(file: Path) -> None:
    assert [key for key in keys_of(tomllib.loads(file.read_text())) if key != key.strip()] == []


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_no_table_hides_in_an_expression(file: Path) -> None:
    assert re.findall(r"\b(?:known|dict)\(\[", file.read_text()) == []


def test_megatrons_layouts_are_short() -> None:
    # the arguments' place every name that four parsers know
    most = {"megatron": 450, "megatron_args": 500}
    lines = {name: len((DATA / f"layouts/{name}.toml").read_text().splitlines()) for name in most}
    assert all(lines[name] < most[name] for name in most)


@pytest.mark.parametrize("word", [*TENSOR_TABLES, *KEY_TABLES])
def test_every_table_is_documented(word: str) -> None:
    assert re.search(rf"\[(?:\w+\.)?{word}(?:\.\w+)?\]", DOCUMENT), word


WORDS = (
    "when", "value", "otherwise", "for", "nulls", "say", "must", "extends", "padded", "sum_as_stored", "axes",
    "same_as", "like", "holds", "families",
)  # fmt: skip


@pytest.mark.parametrize("word", [*RULE_KEYS, *WORDS])
def test_every_key_of_a_rule_is_documented(word: str) -> None:
    assert re.search(rf"`{word}`|\b{word} = ", DOCUMENT), word


@pytest.mark.parametrize("word", sorted(FUNCTIONS))
def test_every_function_is_documented(word: str) -> None:
    functions = DOCUMENT[DOCUMENT.index("these functions:") :]
    assert re.search(rf"`(?:[^`]* )?{word}(?:\(| |`)", functions), word


def axes() -> set[str]:
    """The axes of all families."""
    return {axis for file in DATA.glob("families/*.toml") for axis in tomllib.loads(file.read_text()).get("axes", {})}


@pytest.mark.parametrize("axis", sorted(axes()))
def test_every_axis_is_in_the_legend(axis: str) -> None:
    legend = DOCUMENT[DOCUMENT.index("### Axes") : DOCUMENT.index("## Layouts")]
    assert re.search(rf"`{axis}`", legend) or (axis.startswith("rank_") and "`rank_…`" in legend), axis
