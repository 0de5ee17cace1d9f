"""How far logits may lie from the source's, by what the output's types lose. The reasons are here, not in tables.

Rounding a weight matrix adds noise whose size, relative to the weights, is a property of the type alone: `noise` asks
the codec itself, on a normal distribution. What such noise does to logits is a property of the model: the same forward
of the source, with random noise of that size on every matrix, tells. An output may lie TIMES as far away (its own
rounding is another draw, and engines round activations too); a fault of mapping is no noise and lies further.

Where a router chooses experts, the least noise can choose another one at a few positions, which then lie far away and
reach later ones through attention; there the distance of the middle position counts, not that of all.

What few bits lose hides an engine's faults. So an engine is also held against the reference forward of the output's own
weights, with the source's configuration: there no weight is rounded, and what the engine itself rounds is little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.conversion import convert
from crossdock.errors import CrossdockError
from crossdock.model.config import ModelConfig
from crossdock.planning.plan import Plan
from crossdock.proof.engines.registry import Engine
from crossdock.proof.references import Reference

TIMES = 3.0
SAME = 2e-6  # of the largest logit: the difference of float32 sums in another order (docs/decisions/0005)
UNKNOWN = 0.1  # noise of a type that is only read
SAMPLE = 8192  # values, of every block size a multiple


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed. max_abs: of a logit's difference, where types lose nothing, as a share of the largest
    logit until it is `scaled`; else distance: relative, over all.

    noise   relative, on every weight, to find out what it does: `TIMES` that is added to the distance
    median  the middle position's distance counts
    why  a phrase that says what the limits come from
    """

    why: str
    max_abs: float | None
    distance: float | None
    median: bool = False
    noise: float = 0.0

    def failed(self, max_abs: float, distance: float) -> tuple[str, ...]:
        """The limit that these figures break, as a sentence. NaN breaks it."""
        if self.max_abs is not None and not max_abs <= self.max_abs:
            return (f"the largest difference is {max_abs:.3g}, more than {self.max_abs:.3g}",)
        if self.distance is not None and not distance <= self.distance:
            return (f"the relative distance is {distance:.3g}, more than {self.distance:.3g}",)
        return ()

    def over(self, distances: Sequence[float]) -> float:
        """The one distance that counts, of those of all positions."""
        return float(np.median(distances)) if self.median else math.sqrt(float(np.mean(np.square(distances))))

    def shaken(self, distances: Sequence[float]) -> Limits:
        """With what noise was found to do at each position."""
        return replace(self, distance=TIMES * self.over(distances) + (self.distance or 0.0))

    def scaled(self, largest: float) -> Limits:
        """With `max_abs` in the logits' own unit, for logits up to `largest`: float32 rounds in proportion."""
        return replace(self, max_abs=None if self.max_abs is None else self.max_abs * largest)


def limits(
    config: ModelConfig,
    lost: Iterable[str],
    stored: Iterable[str],
    engine: Engine | None = None,
    whom: str = "the source",
    reference: Reference | None = None,
) -> Limits:
    """Limits for an output whose tensors lose by the types `lost` (see `losing`) and lie in the types `stored`.

    whom  what it is held against, in words; reference: who computed its logits, where the reference forward did not
    """
    types = set(lost)
    if engine is not None:
        types |= engine.rounded_to(stored)
    worst = max(types, key=noise, default=None)
    largest = SAME
    if engine is not None:
        largest = engine.close.get(config.hidden_act, engine.close[""])
    if reference is not None:
        largest = max(largest, reference.close(config.hidden_act))
    if worst is None:
        names = [one.name for one in (reference, engine) if one is not None]
        what = f"float32 in {' and '.join(names)}, with {config.hidden_act}" if names else "float32 in another order"
        return Limits(what, largest, None)
    routed = config.num_experts > 0
    what = f"{TIMES:g} × what noise of {worst}'s size does to {whom}" + (", at the middle position" if routed else "")
    return Limits(what, None, largest, routed, noise(worst))


def losing(plan: Plan) -> set[str]:
    """The types of the plan's tensors that do not hold every value of what fills them."""
    out = set()
    for tensor in plan.tensors:
        if tensor.is_scale_tensor:
            continue
        target = codecs.get(tensor.dtype)
        used = [plan.extents[number] for number in {move.extent for move in tensor.moves}]
        stored = {extent.dtype if extent.scaling is None else "float32" for extent in used}
        for name in {"float32"} if tensor.sums or tensor.scaled else stored - {tensor.dtype}:
            if not target.encodes or not convert(codecs.get(name), target).exact:
                out.add(tensor.dtype)
    return out


@cache
def noise(dtype: str) -> float:
    """Root mean square error of a normal distribution in `dtype`, relative to its own."""
    codec = codecs.get(dtype)
    values = np.random.default_rng(0).standard_normal(SAMPLE).astype(np.float32)
    raw = np.empty(SAMPLE // codec.block * codec.block_bytes, np.uint8)
    back = np.empty_like(values)
    try:
        codec.encode(values, raw)
    except CrossdockError:
        return UNKNOWN
    codec.decode(raw, back)
    return float(np.sqrt(np.mean((back - values) ** 2) / np.mean(values**2)))
