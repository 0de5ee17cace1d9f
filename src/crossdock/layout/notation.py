"""The notation: one line of text that says where every index of a tensor lives in a container.

    model.layers.{layer}.self_attn.q_proj.weight : (group head half pair) embed

Left of the colon the container's name, with the axes whose index is part of it; right of it the dimensions of its
shape, outermost first. This module only parses. `docs/notation.md` is the specification.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossdock.errors import ConfigError

_TOKEN = re.compile(r"[()\[\]]|[^\s()\[\]]+")
_INDEX = re.compile(r"{([^{}]*)}")
_EITHER = re.compile(r"\[([^\[\]{}]*){([^{}]*)}([^\[\]{}]*)\]")
_WORD = re.compile(r"[a-z][a-z0-9_]*\Z")
_PREFIX = re.compile(r"@([a-z][a-z0-9_]*)(?=\.)")

Prefixes = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Atom:
    """One axis, whole or cut over ranks: `layer/vpp/pp` is cut by vpp first, then each part by pp.

    numbers  the table of the layout that turns an index into the number in the name, or "" where they are the same
    """

    axis: str
    ranks: tuple[str, ...] = ()
    numbers: str = ""

    def __str__(self) -> str:
        return "/".join((self.axis, *self.ranks)) + (f"@{self.numbers}" if self.numbers else "")


@dataclass(frozen=True, slots=True)
class Bracket:
    """Several canonical tensors side by side in one dimension, each with its own axes (none: size 1)."""

    parts: tuple[tuple[str, tuple[Atom, ...]], ...]


Dim = tuple[Atom | Bracket, ...]  # empty: a dimension of size 1 that holds no axis


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed line: the name as literal pieces around the axes in it, and the dimensions of the shape."""

    text: str
    literals: tuple[str, ...]
    indices: tuple[Atom, ...]
    dims: tuple[Dim, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The canonical tensors of the bracket, or () where the pattern holds one tensor whole."""
        for dim in self.dims:
            for item in dim:
                if isinstance(item, Bracket):
                    return tuple(name for name, _ in item.parts)
        return ()

    def atoms(self, part: str = "") -> tuple[Atom, ...]:
        """Every axis that places canonical tensor `part`: those of the name first, then the shape's in order."""
        found = list(self.indices)
        for dim in self.dims:
            for item in dim:
                found.extend([item] if isinstance(item, Atom) else dict(item.parts)[part])
        return tuple(found)

    def spell(self, numbers: tuple[int, ...]) -> str:
        """The container's name with `numbers` in place of its axes."""
        pieces = [self.literals[0]]
        for number, literal in zip(numbers, self.literals[1:], strict=True):
            pieces += [str(number), literal]
        return "".join(pieces)


def prefix_of(text: str) -> str:
    """The word after @ where a line begins with one of [prefixes], else ""."""
    found = _PREFIX.match(text)
    return found[1] if found else ""


def alternatives(text: str, prefixes: Prefixes) -> tuple[str, ...]:
    """The lines that `text` stands for: `[.{layer}]` in a name means the first dimension, or else the name.

    `a[.{layer}].b : embed` gives `a.b : layer embed` and `a.{layer}.b : embed`, in this order. `@block.b` gives the
    same line behind every text of `prefixes["block"]`.
    """
    word = prefix_of(text)
    if word:
        rest = text[len(word) + 1 :]
        return tuple(line for prefix in prefixes[word] for line in alternatives(prefix + rest, prefixes))
    name, colon, shape = text.partition(" : ")
    found = list(_EITHER.finditer(name))
    if not found:
        return (text,)
    before, after = name[: found[-1].start()], name[found[-1].end() :]
    left, axis, right = found[-1].groups()
    stacked = f"{before}{after}{colon}{axis} {shape}"
    named = f"{before}{left}{{{axis}}}{right}{after}{colon}{shape}"
    return (*alternatives(stacked, prefixes), *alternatives(named, prefixes))


@functools.cache
def parse(text: str) -> Pattern:
    """Parse one line of the notation. Raises ConfigError with a caret under the place that is wrong."""
    name, colon, shape = text.partition(" : ")
    if not colon:
        raise _error(text, len(text), "no ' : ' between name and shape")
    literals, indices, end = [], [], 0
    for match in _INDEX.finditer(name):
        literals.append(name[end : match.start()])
        indices.append(_index(match[1], text, match.start(1)))
        end = match.end()
    literals.append(name[end:])
    stray = next((i for i, c in enumerate(_INDEX.sub(lambda m: "_" * len(m[0]), name)) if c in "{} "), None)
    if stray is not None or not name:
        raise _error(text, stray or 0, "a name is one word with {axis} in it")
    dims = () if shape == "()" else _dims(text, shape, len(text) - len(shape))
    if not dims and shape != "()":
        raise _error(text, len(text), "no dimensions")
    pattern = Pattern(text, tuple(literals), tuple(indices), dims)
    for part in pattern.parts or ("",):
        axes = [atom.axis for atom in pattern.atoms(part)]
        for axis in axes:
            if axes.count(axis) > 1:
                places = [match.start() for match in re.finditer(rf"\b{axis}\b", text)]
                raise _error(text, places[-1], f"axis {axis!r} is placed twice")
    return pattern


def _dims(text: str, shape: str, start: int) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    group: list[Atom | Bracket] | None = None
    bracket: list[tuple[str, tuple[Atom, ...]]] | None = None
    for match in _TOKEN.finditer(shape):
        token, at = match[0], start + match.start()
        item: Atom | Bracket
        if bracket is not None and token in "()":
            raise _error(text, at, f"{token!r} inside '['")
        if token == "(":
            if group is not None:
                raise _error(text, at, "'(' inside '('")
            group = []
        elif token == ")":
            if not group:
                raise _error(text, at, "')' without axes before it")
            dims.append(tuple(group))
            group = None
        elif token == "[":
            if bracket is not None or any(isinstance(i, Bracket) for d in (*dims, group or ()) for i in d):
                raise _error(text, at, "a second '['")
            bracket = []
        elif token == "]":
            if not bracket:
                raise _error(text, at, "']' without tensors before it")
            item = Bracket(tuple(bracket))
            bracket = None
            if group is None:
                dims.append((item,))
            else:
                group.append(item)
        elif bracket is not None:
            part, colon, axes = token.partition(":")
            if not colon or not _WORD.match(part):
                raise _error(text, at, "inside '[' every entry is tensor:axis*axis")
            if part in (name for name, _ in bracket):
                raise _error(text, at, f"tensor {part!r} is in the bracket twice")
            bracket.append((part, tuple(_atom(a, text, at) for a in axes.split("*") if a)))
        elif token == "1":
            if group is not None:
                raise _error(text, at, "a dimension of size 1 stands alone")
            dims.append(())
        else:
            item = _atom(token, text, at)
            if group is None:
                dims.append((item,))
            else:
                group.append(item)
    if group is not None or bracket is not None:
        raise _error(text, len(text), "unclosed '(' or '['")
    return tuple(dims)


def _index(token: str, text: str, at: int) -> Atom:
    """An axis in a name: whole, counted from a rank's first index, or with a number from a table."""
    plain, mark, numbers = token.partition("@")
    atom = _atom(plain, text, at)
    if not mark:
        return atom
    if atom.ranks or not _WORD.match(numbers):
        raise _error(text, at, f"{token!r} is not axis@numbers")
    return Atom(atom.axis, (), numbers)


def _atom(token: str, text: str, at: int) -> Atom:
    axis, *ranks = token.split("/")
    if not all(_WORD.match(word) for word in (axis, *ranks)):
        raise _error(text, at, f"{token!r} is not axis or axis/rank")
    return Atom(axis, tuple(ranks))


def _error(text: str, at: int, what: str) -> ConfigError:
    return ConfigError(f"{what}\n  {text}\n  {' ' * at}^")
