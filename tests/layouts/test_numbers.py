"""Numbers in names that come from a table, optional indices and dimensions of size 1, as containers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from crossdock.errors import ConfigError
from crossdock.layout.lenses import Geometry, containers
from crossdock.layout.names import largest_indices, largest_numbers
from crossdock.layout.notation import Atom, alternatives, parse
from crossdock.layout.rules import Rule

SIZES = {"layer": 3, "expert": 2, "embed": 4}


def names(line: str, numbers: Mapping[str, Mapping[int, int]], stored: tuple[str, ...] = ()) -> dict[str, int]:
    """Name -> layer, of every container of a tensor with the axes layer and embed."""
    pattern = parse(line)
    geometry = Geometry(SIZES, {}, {}, {"x": (0, 1, 2)}, numbers=numbers)
    largest = largest_indices(pattern, largest_numbers(stored)) if stored else None
    found = containers(Rule(("x",), (pattern,), ""), pattern, geometry, largest)
    return {container.name: container.lenses[0].axes[0].low for container in found}


def test_a_number_from_a_table_stands_for_the_index() -> None:
    assert names("l.{layer@mixer}.w : embed", {"mixer": {0: 1, 1: 4, 2: 5}}) == {"l.1.w": 0, "l.4.w": 1, "l.5.w": 2}


def test_an_index_without_a_number_has_no_name() -> None:
    assert names("l.{layer@mixer}.w : embed", {"mixer": {0: 1, 2: 0}}) == {"l.1.w": 0, "l.0.w": 2}


def test_no_name_beyond_the_largest_stored_number_is_looked_for() -> None:
    table = {"mixer": {0: 0, 1: 7, 2: 2}}
    assert names("l.{layer@mixer}.w : embed", table, ("l.0.w", "l.2.w")) == {"l.0.w": 0, "l.2.w": 2}


def test_an_optional_index_stands_for_two_lines() -> None:
    assert alternatives("a[.{layer}].b : (x y) z", {}) == ("a.b : layer (x y) z", "a.{layer}.b : (x y) z")
    assert alternatives("a.{layer}.b : [x:y z:]", {}) == ("a.{layer}.b : [x:y z:]",)
    assert alternatives("a[.{layer}].b[{expert/ep}] : x", {}) == (
        "a.b : layer expert/ep x",
        "a.{layer}.b : expert/ep x",
        "a.b{expert/ep} : layer x",
        "a.{layer}.b{expert/ep} : x",
    )


def test_a_dimension_of_size_one_holds_no_axis() -> None:
    pattern = parse("conv.{layer} : embed 1 1")
    assert pattern.dims == ((Atom("embed"),), (), ())
    (first, *_) = containers(Rule(("x",), (pattern,), ""), pattern, Geometry(SIZES, {}, {}, {"x": (0, 1, 2)}))
    assert first.shape == (4, 1, 1)
    assert first.lenses[0].volume == 4


@pytest.mark.parametrize("line", ["a : (x 1)", "a.{layer/pp@mixer} : x", "a.{layer@} : x", "a : layer@mixer"])
def test_what_the_notation_does_not_have(line: str) -> None:
    with pytest.raises(ConfigError):
        parse(line)
