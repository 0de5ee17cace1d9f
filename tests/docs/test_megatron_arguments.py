"""Every argument of Megatron-LM's own parsers has a place in the data, and the page of documentation says it."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from conftest import TESTS
from crossdock.layout.rules import layout
from crossdock.planning.config.unknown_keys import only_value_problems

SCRIPT: dict[str, Any] = runpy.run_path(str(TESTS.parent / "scripts/megatron_arguments"))
PARSERS = SCRIPT["parsers"]()
# arguments when the parser was recorded, and fields of MLATransformerConfig, or of Bridge's GPTModelProvider over it
SIZES = {
    "0.13.1": (501, 201), "0.16.1": (649, 257), "0.19.2": (806, 322), "d98e8a6": (837, 335),
    "Megatron-Bridge 067f987": (0, 50),
}  # fmt: skip


@pytest.mark.parametrize("version", SIZES)
def test_every_argument_of_the_parser_has_a_place(version: str) -> None:
    tables = PARSERS[version]
    assert (len(tables["args"]), len(tables["transformer_config"])) == SIZES[version]
    places = SCRIPT["places"]()
    assert [name for table in tables.values() for name in table if name not in places] == []


@pytest.mark.parametrize("version", SIZES)
def test_no_default_of_the_parser_is_refused(version: str) -> None:
    assert only_value_problems(layout("megatron"), PARSERS[version]["args"], "args") == []


def test_an_argument_that_nothing_knows_has_no_place() -> None:
    names = SCRIPT["names"]
    SCRIPT["places"].__globals__["names"] = lambda: [*names(), "attention_of_next_year"]
    try:
        assert "attention_of_next_year" not in SCRIPT["places"]()
    finally:
        SCRIPT["places"].__globals__["names"] = names


def test_the_page_is_that_of_the_data() -> None:
    written = (TESTS.parent / "docs/megatron-arguments.md").read_text(encoding="utf-8")
    assert written == SCRIPT["page"](), "run scripts/megatron_arguments"
