"""Many tensors as a short tree: numbers in names become ranges, what is alike becomes one line.

model
  layers.{0-3}
    mlp.gate_proj.weight    4  256 × 64  bfloat16
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole component of a dotted name

Numbers = tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Alike:
    """Tensors that differ only in numbers of their names; `name` has ranges for these: "layers.{0-3}.w"."""

    name: str
    count: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        return self.count * prod(self.shape)


@dataclass(slots=True)
class _Node:
    below: dict[str, _Node] = field(default_factory=dict)
    tensors: list[Alike] = field(default_factory=list)


def collapse(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> list[Alike]:
    """(name, shape, dtype) of each tensor to groups, in the order in which they are first met."""
    numbers: dict[tuple[str, tuple[int, ...], str], list[set[int]]] = {}
    counts: dict[tuple[str, tuple[int, ...], str], int] = {}
    for name, shape, dtype in tensors:
        found = [int(text[:18]) for text in NUMBER.findall(name)]
        key = (NUMBER.sub("{}", name) if found else name, shape, dtype)
        counts[key] = counts.get(key, 0) + 1
        sets = numbers.setdefault(key, [set() for _ in found])
        for values, value in zip(sets, found, strict=False):
            values.add(value)
    out = []
    for key, sets in numbers.items():
        name = key[0]
        for values in sets:
            name = name.replace("{}", ranges(values), 1)
        out.append(Alike(name, counts[key], key[1], key[2]))
    return out


def ranges(values: Iterable[int]) -> str:
    """ "3", "{0-3}", "{0-2,5}", "{0-30 by 2}"."""
    left = sorted(values)
    if len(left) == 1:
        return str(left[0])
    step = left[1] - left[0]
    if step > 1 and len(left) > 2 and left == list(range(left[0], left[-1] + 1, step)):
        return f"{{{left[0]}-{left[-1]} by {step}}}"
    out: list[list[int]] = []
    for value in left:
        if out and value == out[-1][1] + 1:
            out[-1][1] = value
        else:
            out.append([value, value])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out) + "}"


def lines(groups: Iterable[Alike]) -> Iterator[tuple[str, Alike | None]]:
    """The tree depth first: the indented text of a node, and the tensors that it stands for, if any."""
    root = _Node()
    for alike in groups:
        *folders, leaf = _components(alike.name)
        node = root
        for folder in folders:
            node = node.below.setdefault(folder, _Node())
        node.below.setdefault(leaf, _Node()).tensors.append(alike)
    yield from _lines(root, 0)


def _lines(node: _Node, depth: int) -> Iterator[tuple[str, Alike | None]]:
    for name, child in node.below.items():
        while len(child.below) == 1 and not child.tensors:
            ((only, child),) = child.below.items()
            name = f"{name}.{only}"
        text = "  " * depth + name
        if not child.tensors:
            yield text, None
        for alike in child.tensors:
            yield text, alike
        yield from _lines(child, depth + 1)


def _components(name: str) -> list[str]:
    """A dotted name in parts; numbers stay with the word before them."""
    out: list[str] = []
    for part in name.split("."):
        if out and (part.startswith("{") or part.isdecimal()):
            out[-1] = f"{out[-1]}.{part}"
        else:
            out.append(part)
    return out
