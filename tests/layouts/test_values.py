"""Values of config keys: which alternative counts on the way in and on the way out, tables and lists of them."""

from __future__ import annotations

from typing import Any

import pytest

from crossdock.errors import ConfigError
from crossdock.layout.values import parse_value

READ: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "an expression": ("a + 1", {"a": 2}, 3),
    "a missing key has no value": ("a", {}, None),
    "the first whose keys are there": (["a", "b"], {"b": 2}, 2),
    "None is no value": (["a", "b"], {"a": None, "b": 2}, 2),
    "a key within a key that is missing": (["a['x']", "b"], {"a": {}, "b": 2}, 2),
    "a table that is None": (["a['x']", "b"], {"a": None, "b": 2}, 2),
    "a condition that holds": ([{"when": "a", "value": "1"}, "2"], {"a": True}, 1),
    "a condition that fails": ([{"when": "a", "value": "1"}, "2"], {"a": False}, 2),
    "a condition whose key is missing": ([{"when": "a", "value": "1"}, "2"], {}, 2),
    "a table": ({"factor": "a", "low": "b"}, {"a": 2.0, "b": 1}, {"factor": 2.0, "low": 1}),
    "an entry that is None is left out": ({"factor": "a", "low": "b"}, {"a": 2.0, "b": None}, {"factor": 2.0}),
    "a table that lacks a key is none": ([{"factor": "a", "low": "b"}, {"factor": "a"}], {"a": 2.0}, {"factor": 2.0}),
    "a table under a condition": ({"when": "a > 3", "factor": "a"}, {"a": 2}, None),
    "a table with nulls": ({"nulls": True, "factor": "a", "low": "None"}, {"a": 2}, {"factor": 2, "low": None}),
    "a list of tables": (
        {"for": "i in range(n)", "layer": "i", "wide": "i > 0"},
        {"n": 2},
        [{"layer": 0, "wide": False}, {"layer": 1, "wide": True}],
    ),
    "tables within tables": (
        {"for": "i in range(n)", "inner": {"layer": "i"}},
        {"n": 2},
        [{"inner": {"layer": 0}}, {"inner": {"layer": 1}}],
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_what_is_read(kind: str) -> None:
    content, keys, expected = READ[kind]
    found = parse_value(content, {}, "here").read(keys)
    assert (found[0] if found is not None else None) == expected


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a division by zero": (["a // b", "b"], {"a": 1, "b": 0}, "a // b cannot be computed"),
    "a text in place of a number": (["a + 1", "b"], {"a": "x", "b": 0}, r"a \+ 1 cannot be computed"),
    "a condition that cannot be computed": ([{"when": "a > 1", "value": "1"}, "2"], {"a": "x"}, "cannot be computed"),
    "an entry of a table": ({"factor": "float(a)"}, {"a": "x"}, "cannot be computed"),
    "a table whose condition holds and whose keys are missing": (
        {"when": "a", "factor": "b", "low": "c"}, {"a": 1, "c": 2}, "lacks b"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str) -> None:
    """A value that is there and cannot be used is never passed over for the next alternative."""
    content, keys, sentence = REFUSED[kind]
    with pytest.raises(ConfigError, match=sentence):
        parse_value(content, {}, "here").read(keys)


def test_what_is_read_says_from_which_keys() -> None:
    value = parse_value([{"when": "a", "value": "b"}, "c"], {}, "here")
    assert value.read({"a": True, "b": 2, "c": 3}) == (2, frozenset("ab"))
    assert value.read({"a": False, "b": 2, "c": 3}) == (3, frozenset("c"))


def test_the_names_of_a_loop_are_not_keys() -> None:
    assert parse_value({"for": "i in range(n)", "layer": "i + a"}, {}, "here").names == {"n", "a"}


def test_a_table_of_the_layout_is_not_a_key() -> None:
    value = parse_value("get(activations, act, act)", {"activations": {"swish": "silu"}}, "here")
    assert value.names == {"act"}
    assert value.read({"act": "swish"}) == ("silu", frozenset({"act"}))
    assert value.read({"act": "relu", "activations": {"relu": "no"}}) == ("relu", frozenset({"act"}))


WRITTEN: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "a value": ("a", {"a": None}, (None,)),
    "the first whose condition holds": ([{"when": "a", "value": "1"}, "2"], {"a": 0}, (2,)),
    "no condition holds": ({"when": "a", "value": "1"}, {"a": 0}, None),
    "a table whose condition fails": ({"when": "a", "x": "1", "otherwise": "None"}, {"a": 0}, (None,)),
    "a table whose condition holds": ({"when": "a", "x": "1", "otherwise": "None"}, {"a": 1}, ({"x": 1},)),
    "an entry under a condition": ({"x": {"when": "a", "value": "1"}, "y": "2"}, {"a": 0}, ({"y": 2},)),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_written(kind: str) -> None:
    content, fields, expected = WRITTEN[kind]
    assert parse_value(content, {}, "here").written(fields) == expected


@pytest.mark.parametrize("content", ["a // b", ["a // b", "b"], {"x": "a // b"}, "missing"])
def test_what_cannot_be_written_is_an_error(content: Any) -> None:
    with pytest.raises((ArithmeticError, KeyError)):
        parse_value(content, {}, "here").written({"a": 1, "b": 0})
