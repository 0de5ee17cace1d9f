"""The canonical tensors themselves as a plan: each one, layer by layer, in C order of axes that both sides agree on.

Such a plan has no files and is never written; `running.diff` reads two of them side by side. Reads no tensor data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from crossdock.codecs import registry as codecs
from crossdock.errors import PlanError, Problem
from crossdock.layout.lenses import Lens, Placement
from crossdock.layout.maps import inverse, sum_alone
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.pairs import products_for
from crossdock.planning.plan import MappedRange, Plan, TargetTensor
from crossdock.planning.tensors.extents import Extents, candidates, moves_for


@dataclass(frozen=True, slots=True)
class Slot:
    """One canonical tensor in one layer, all experts together.

    tensor  its canonical name; layer: None for a tensor outside the layers
    held    the canonical tensor whose values it has: another one where a tied head is the embedding
    sizes   axis -> elements, outermost first as the family declares them, without the layer
    """

    tensor: str
    layer: int | None
    held: str
    sizes: Mapping[str, int]

    @property
    def name(self) -> str:
        """The canonical name with its layer, such as "embed" or "layers.3.attn_q"."""
        return self.tensor if self.layer is None else f"layers.{self.layer}.{self.tensor}"

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.sizes.values())


def slots(checkpoint: Checkpoint) -> dict[str, Slot]:
    """Every canonical tensor of `checkpoint` by name: what lies outside the layers first, then layer by layer."""
    family, config = checkpoint.family, checkpoint.config
    sizes, present = family.sizes(config), family.present(config)
    found: list[Slot] = []
    for name, decl in present.items():
        layers = family.layers_of(decl, config)
        for layer in (None,) if layers is None else layers:
            found.append(Slot(name, layer, name, sizes.of(decl.axes, layer)))
    for name, decl in family.tensors.items():
        like = present.get(decl.same_as)
        if name not in present and like is not None and "layer" not in like.axes:
            found.append(Slot(name, None, decl.same_as, sizes.of(like.axes)))
    found.sort(key=lambda slot: -1 if slot.layer is None else slot.layer)
    return {slot.name: slot for slot in found}


def stored_order(checkpoint: Checkpoint, slot: Slot) -> tuple[str, ...]:
    """The axes of `slot` in the order in which its first stored tensor has them: blocks of a codec stay whole in it."""
    provision = next(candidates(checkpoint.resolved, slot.held, _lens(slot, tuple(slot.sizes))))
    placed = {p.axis: (p.dim, -p.step) for p in provision.lens.axes}
    return tuple(sorted(slot.sizes, key=lambda axis: placed[axis]))


def codec_of(checkpoint: Checkpoint, slot: Slot) -> str:
    """The codec that `slot` is stored in; float32 when its parts differ."""
    names = {p.stored.values for p in candidates(checkpoint.resolved, slot.held, _lens(slot, tuple(slot.sizes)))}
    return names.pop() if len(names) == 1 else "float32"


def stored_as(checkpoint: Checkpoint, slot: Slot) -> str:
    """How `slot` is stored, for people: "bfloat16", "float8_e4m3fn × scales"; each way where its parts differ."""
    parts = [p.stored for p in candidates(checkpoint.resolved, slot.held, _lens(slot, tuple(slot.sizes)))]
    return " + ".join(dict.fromkeys(one.dtype + (" × scales" if one.scaling else "") for one in parts))


def canonical_plan(checkpoint: Checkpoint, orders: Mapping[str, tuple[str, ...]]) -> Plan:
    """The plan of the slots named in `orders`, each in C order of the axes given there, in the codec it is stored in.

    What is stored otherwise (zero-centred norms, decays for their logarithms) becomes float32 on the way. Raises
    PlanError when a tensor is not provided exactly once.
    """
    known = slots(checkpoint)
    extents = Extents()
    tensors, problems = [], []
    for name, axes in orders.items():
        slot = known[name]
        shape, lens = tuple(slot.sizes[axis] for axis in axes), _lens(slot, axes)
        moves, count, used = moves_for(extents, checkpoint.resolved, slot.held, lens, shape)
        ways = {provision.storing for provision in used}
        if count != slot.elements or len(ways) != 1:
            problems.append(Problem("is not provided exactly once", where=name, got=f"{count} of {slot.elements}"))
            continue
        steps = inverse(ways.pop())
        add = sum_alone(steps)
        addition = checkpoint.addition
        products = () if addition is None else products_for(extents, addition, (lens,), shape, {})
        dtypes = {provision.stored.values for provision in used}
        dtype = dtypes.pop() if len(dtypes) == 1 and not steps and not products else "float32"
        codec = codecs.get(dtype)
        tensors.append(
            TargetTensor(
                name, 0, 0, -(-slot.elements // codec.block) * codec.block_bytes, shape, dtype,
                tuple(sorted(moves, key=lambda move: move.dst)), add or 0.0, of=(slot.tensor,),
                sources=tuple(dict.fromkeys(p.stored.name for p in used)), products=products,
                maps=() if add is not None else (MappedRange(0, slot.elements, steps),),
            )
        )  # fmt: skip
    if problems:
        raise PlanError(problems)
    source = checkpoint.source
    return Plan(
        source_format=source.format,
        source_root=source.root,
        target_format="canonical",
        single_file=False,
        sources=source.files,
        extents=tuple(extents.planned),
        files=(),
        tensors=tuple(tensors),
        described=checkpoint.described,
    )


def _lens(slot: Slot, axes: tuple[str, ...]) -> Lens:
    fixed = () if slot.layer is None else (Placement("layer", -1, 0, slot.layer, slot.layer + 1),)
    placed = tuple(Placement(axis, dim, 1, 0, slot.sizes[axis]) for dim, axis in enumerate(axes))
    return Lens(slot.held, (*fixed, *placed), (0,) * len(axes))
