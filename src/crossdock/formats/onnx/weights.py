"""Canonical tensors as an ONNX graph sees them: bytes of the shards, viewed in the order of the canonical axes.

Where a canonical tensor is one run of bytes the graph names the run and nothing is copied, also where it is part of a
fused tensor, or of a stack of experts in tensors that lie one behind another. Elsewhere it is a view: the stored block,
its dimensions taken apart, cut and turned, which an engine does once, when it loads the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crossdock.codecs import registry as codecs
from crossdock.errors import PlanError
from crossdock.formats.onnx.graph import External, Graph, Value
from crossdock.formats.target import Placed
from crossdock.layout.boxes import folded, intersect, steps_of, strided
from crossdock.layout.lenses import Lens, Placement
from crossdock.layout.maps import Steps


class Home(NamedTuple):
    """Where a tensor of the target lies: its file, the byte where its data starts, its codec."""

    file: str
    offset: int
    dtype: str


class Axis(NamedTuple):
    """An axis of a view: how many elements, and how many stored elements lie between neighbours."""

    size: int
    step: int


@dataclass(frozen=True)
class Region:
    """A canonical tensor in a file. Steps and `start` count elements from `home` on.

    axes   axis -> size and step, as the family declares them
    steps  from what is stored to the canonical value
    """

    name: str
    home: Home
    start: int
    axes: Mapping[str, Axis]
    steps: Steps


@dataclass(frozen=True)
class Nested:
    """A strided view as its stored block: `shape`, of which `cut` is kept (start and end of each dimension), with the
    dimensions then in `order`. offset: elements of the file before the block."""

    offset: int
    shape: tuple[int, ...]
    cut: tuple[tuple[int, int], ...]
    order: tuple[int, ...]


def regions(placed: Sequence[Placed], homes: Mapping[str, Home]) -> dict[tuple[str, int | None], Region]:
    """(canonical tensor, layer) -> where it lies. Raises PlanError for one in parts that lie at no even distance."""
    parts: dict[tuple[str, int | None], list[Placed]] = {}
    for one in placed:
        parts.setdefault((one.tensor, one.layer), []).append(one)
    return {key: _region(found, homes) for key, found in parts.items()}


def stacks(placed: Sequence[Placed]) -> dict[str, tuple[str, int | None]]:
    """Tensor of the target -> the canonical tensor of which it is one of several parts, such as one expert."""
    parts: dict[tuple[str, int | None], list[str]] = {}
    for one in placed:
        if any(p.axis == "expert" and p.dim < 0 for p in one.lens.axes):
            parts.setdefault((one.tensor, one.layer), []).append(one.name)
    return {name: key for key, names in parts.items() for name in names}


def _region(parts: Sequence[Placed], homes: Mapping[str, Home]) -> Region:
    """The first of equal parts (a tied head that is stored all the same), or all experts as one."""
    first, home = parts[0], homes[parts[0].name]
    name = first.tensor if first.layer is None else f"layers.{first.layer}.{first.tensor}"
    start, axes = _strides(first)
    experts: dict[int, Placed] = {}
    for part in parts:
        number = next((p.low for p in part.lens.axes if p.axis == "expert" and p.dim < 0), None)
        if number is not None:
            experts.setdefault(number, part)
    if experts:
        size = codecs.get(home.dtype).block_bytes
        begins = [homes[experts[number].name].offset for number in sorted(experts)]
        apart = begins[1] - begins[0] if len(begins) > 1 else math.prod(experts[min(experts)].shape) * size
        step, rest = divmod(apart, size)
        alike = all(homes[part.name]._replace(offset=0) == home._replace(offset=0) for part in experts.values())
        if not alike or rest or begins != list(range(begins[0], begins[0] + len(begins) * step * size, step * size)):
            raise PlanError("the experts do not lie one behind another, as a graph needs them", where=name)
        home = homes[experts[min(experts)].name]
        start, axes = _strides(experts[min(experts)])
        axes = {**axes, "expert": Axis(len(begins), step)}
    return Region(name, home, start, axes, first.steps)


def _strides(one: Placed) -> tuple[int, dict[str, Axis]]:
    """Where the tensor starts in its container, and the step of each axis, in elements."""
    whole = {p.axis: (p.low, p.high) for p in one.lens.axes}
    steps = steps_of(one.shape)
    placed = {p.axis: p for p in one.lens.axes}
    out = {}
    for axis, size in one.sizes.items():
        at = placed.get(axis)
        step = 0 if at is None or at.dim < 0 else at.step * steps[at.dim]
        out[axis] = Axis(size, step)
    target = Lens(one.tensor, tuple(Placement(axis, -1, 0, *whole[axis]) for axis in whole), ())
    box = intersect(one.lens, target)
    assert box is not None
    start = strided(box, one.lens, steps, target, ()).src
    layer = placed.get("layer")
    if layer is not None and layer.dim >= 0 and one.layer is not None:
        start += (one.layer - layer.low) * layer.step * steps[layer.dim]
    return start, out


def nested(region: Region, groups: Sequence[Sequence[Axis]], outer: Axis | None = None) -> Nested:
    """`groups` of axes (outputs, inputs) as dimensions of the stored block, neighbours joined within a group.

    outer  an axis that is the first dimension of the block whatever lies within. Raises PlanError where steps do not
    nest in each other.
    """
    axes = [] if outer is None else [outer]
    axes += [one for group in groups for one in _joined(group)]
    if not axes:
        return Nested(region.start, (1,), ((0, 1),), (0,))
    ranked = sorted(range(len(axes)), key=lambda i: (-axes[i].step, i))
    offset, around = 0, 0
    start = region.start
    shape: list[int] = []
    cut: list[tuple[int, int]] = []
    for place, number in enumerate(ranked):
        size, step = axes[number]
        first, start = divmod(start, step)
        if place == 0:
            offset, first, room = first * step, 0, size
        else:
            room, uneven = divmod(around, step)
            if uneven or first + size > room:
                raise PlanError("is stored in an order that ONNX has no view of", where=region.name)
        shape.append(room)
        cut.append((first, first + size))
        around = step
    order = tuple(ranked.index(number) for number in range(len(axes)))
    if around > 1:
        return Nested(offset, (*shape, around), (*cut, (start, start + 1)), (*order, len(axes)))
    return Nested(offset, tuple(shape), tuple(cut), order)


def _joined(group: Sequence[Axis]) -> list[Axis]:
    """Axes that are one run, or one even step, as one; those of one element left out."""
    inner = [math.prod(axis.size for axis in group[i + 1 :]) for i in range(len(group))]
    kept = [(step, axis.step, axis.size) for step, axis in zip(inner, group, strict=True) if axis.size > 1]
    joined = folded(0, 0, kept)
    return [Axis(size, step) for size, step in zip(joined.size, joined.src_step, strict=True)]


@dataclass(frozen=True)
class Weights:
    """The canonical tensors of a model in `graph`."""

    graph: Graph
    regions: Mapping[tuple[str, int | None], Region]

    def vector(self, name: str, layer: int | None, dtype: str = "float32") -> Value:
        """A small tensor as one vector."""
        region = self.regions[name, layer]
        return self._value(self._view(region, [list(region.axes.values())]), region.steps, dtype)

    def table(self, name: str, layer: int | None = None) -> Value:
        """A tensor whose first axis counts rows: [rows, the rest]."""
        region = self.regions[name, layer]
        first, *rest = region.axes.values()
        return self._value(self._view(region, [[first], rest]), region.steps, self.graph.dtype)

    def matrix(self, name: str, layer: int | None, inputs: int) -> tuple[Value, bool]:
        """[outputs, inputs], or [inputs, outputs] where it is stored so (then True)."""
        region = self.regions[name, layer]
        out, into = _halves(list(region.axes.values()), inputs)
        turned = _outermost(into) > _outermost(out)
        view = self._view(region, [into, out] if turned else [out, into])
        return self._value(view, region.steps, self.graph.dtype), turned

    def outputs(self, name: str, layer: int | None, inputs: int) -> int:
        """How many outputs a matrix of so many inputs has, experts aside."""
        axes = self.regions[name, layer].axes
        return math.prod(axis.size for key, axis in axes.items() if key != "expert") // inputs

    def of_expert(self, name: str, layer: int | None, expert: Value, inputs: int) -> tuple[Value, bool]:
        """As `matrix`, of the expert whose number is `expert`, an int64 vector of one. inputs 1: a vector."""
        region, graph = self.regions[name, layer], self.graph
        axes = [axis for key, axis in region.axes.items() if key != "expert"]
        out, into = _halves(axes, inputs)
        turned = _outermost(into) > _outermost(out)
        groups = [into, out] if turned else [out, into]
        view = nested(region, groups, region.axes["expert"])
        if view.order[0] != 0:
            raise PlanError("an expert is not one block of what is stored", where=region.name)
        block = self._block(region, view, view.shape)
        at = graph.op("Mul", expert, graph.ints(1, *(0,) * (len(view.shape) - 1)))
        begin = graph.op("Add", at, graph.ints(0, *(low for low, _ in view.cut[1:])))
        end = graph.op("Add", at, graph.ints(1, *(high for _, high in view.cut[1:])))
        one = graph.op("Slice", block, begin, end, graph.ints(*range(len(view.shape))))
        if view.order != tuple(range(len(view.order))):
            one = graph.transpose(one, *view.order)
        shape = [_size(group) for group in groups] if inputs > 1 else [_size(axes)]
        return self._value(graph.reshape(one, *shape), region.steps, graph.dtype), turned

    def _view(self, region: Region, groups: Sequence[Sequence[Axis]]) -> Value:
        graph, view = self.graph, nested(region, groups)
        shape = tuple(_size(group) for group in groups)
        in_order = view.order == tuple(range(len(view.order)))
        cut = [dim for dim, (bounds, size) in enumerate(zip(view.cut, view.shape, strict=True)) if bounds != (0, size)]
        if in_order and not cut:
            return self._block(region, view, shape)
        block = self._block(region, view, view.shape)
        for dim in cut:
            block = graph.slice(block, dim, *view.cut[dim])
        return graph.reshape(block if in_order else graph.transpose(block, *view.order), *shape)

    def _block(self, region: Region, view: Nested, shape: tuple[int, ...]) -> Value:
        offset = region.home.offset + view.offset * codecs.get(region.home.dtype).block_bytes
        return self.graph.external(region.name, External(region.home.file, offset, region.home.dtype, shape))

    def _value(self, x: Value, steps: Steps, dtype: str) -> Value:
        """Canonical values of stored ones, computed in float32."""
        graph = self.graph
        if not steps:
            return graph.cast(x, dtype)
        x = graph.cast(x, "float32")
        for kind, number in steps:
            if kind in ("exp", "log", "negate"):
                x = graph.op({"exp": "Exp", "log": "Log", "negate": "Neg"}[kind], x)
            else:
                x = graph.binary({"multiply": "Mul", "divide": "Div", "add": "Add"}[kind], x, number)
        return graph.cast(x, dtype)


def _halves(axes: Sequence[Axis], inputs: int) -> tuple[list[Axis], list[Axis]]:
    """The axes of outputs, and those of inputs, of which there are so many together."""
    split = len(axes)
    while split and _size(axes[split:]) < inputs:
        split -= 1
    assert _size(axes[split:]) == inputs, "a matrix of another width than what it is applied to"
    return list(axes[:split]), list(axes[split:])


def _size(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _outermost(axes: Sequence[Axis]) -> int:
    return max((axis.step for axis in axes if axis.size > 1), default=0)
