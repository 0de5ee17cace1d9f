"""From statistics to an index: how much each layer gets, which neurons, and the proof that no choice covers more.

Reads and decides; `formats.gpuidx` writes. The arithmetic is in integers throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.errors import PlanError, Problem, UsageError
from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.bounds import upper_bound
from crossdock_powerinfer.choose import best
from crossdock_powerinfer.rank import hottest, rank
from crossdock_powerinfer.statistics import Statistics
from crossdock_powerinfer.weights import GRAIN, ModelWeights


@dataclass(frozen=True, slots=True)
class LayerShare:
    """A layer's part: neurons of width, the share of its activations that they cover, their bytes (None unknown)."""

    neurons: int
    width: int
    coverage: float
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class Split:
    """A choice.

    objective  activations covered, in units of 2**-scale; `bound` is what no choice can exceed
    budget     of `unit`: "bytes" or "neurons"; `used` is what the choice takes of it
    nbytes     VRAM of the selection, None when the model is not known
    exact      False when the counts had fractions too fine for int64
    """

    index: gpuidx.GpuIndex
    layers: tuple[LayerShare, ...]
    objective: int
    bound: int
    total: int
    scale: int
    unit: str
    budget: int
    used: int
    nbytes: int | None
    grain: int
    exact: bool

    @property
    def coverage(self) -> float:
        """Share of all activations that the GPU computes."""
        return self.objective / self.total if self.total else 0.0

    @property
    def gap(self) -> float:
        """How far, at most, the bound is above the choice, relative: 0 proves optimality without the search."""
        return (self.bound - self.objective) / self.objective if self.objective else 0.0

    @property
    def certificate(self) -> str:
        """Why this is the best choice, as a sentence."""
        if self.bound == self.objective:
            return "optimal: equal to the upper bound, which lets layers be taken in fractions"
        if not self.objective:
            return "optimal: the budget is smaller than the least part of any layer that has activations"
        return (
            "optimal: every choice of whole groups was searched; "
            f"the upper bound with fractions of groups is {100 * self.gap:.3g}% higher"
        )


def split(
    statistics: Statistics,
    *,
    capacity: int | None = None,
    vram: int | None = None,
    weights: ModelWeights | None = None,
    threshold: int = 0,
    grain: int = GRAIN,
    vram_capacity: int = 0,
) -> Split:
    """Choose neurons within `capacity` neurons, or within `vram` bytes of the model `weights`.

    threshold      a layer gets no neurons or at least this many, rounded down to whole groups
    grain          neurons of a group
    vram_capacity  written to the index when there are no `weights`; with them, the bytes that the selection needs
    Raises UsageError, PlanError when statistics and model do not belong together.
    """
    if weights is not None:
        check_widths(statistics, weights.widths, str(weights.path))
    if grain < 1 or grain > max(statistics.widths):
        raise UsageError(
            "--grain is larger than a layer", expected=f"1 to {max(statistics.widths):,}", got=f"{grain:,}"
        )
    if weights is not None and grain % weights.grain:
        raise UsageError(
            "--grain splits rows that PowerInfer's kernels visit together and silently leave out",
            where=str(weights.path),
            expected=f"a multiple of {weights.grain} for the types of this model",
            got=str(grain),
            fix=f"--grain {weights.grain}",
        )
    if not 0 <= vram_capacity < 1 << 64:
        raise UsageError("the VRAM capacity is not a number of bytes", got=f"{vram_capacity:,}")
    if capacity is not None:
        costs, budget, unit = [1] * len(statistics.counts), capacity // grain, "neurons"
    elif vram is not None and weights is not None:
        costs, budget, unit = [grain * one for one in weights.neurons], vram, "bytes"
    else:
        raise UsageError("split requires a capacity in neurons, or a VRAM budget and the model")
    ranked, chosen = best(statistics.counts, grain, costs, budget, threshold // grain)
    neurons = [groups * grain for groups in chosen.groups]
    sizes = None if weights is None else [n * one for n, one in zip(neurons, weights.neurons, strict=True)]
    nbytes = None if sizes is None else sum(sizes)
    buckets = [
        hottest(counts, n, one.least[n // grain - 1] if n else 0)
        for counts, n, one in zip(statistics.counts, neurons, ranked, strict=True)
    ]
    index = gpuidx.of_buckets(buckets, statistics.widths, vram_capacity if nbytes is None else nbytes)
    return Split(
        index,
        shares(statistics, index, sizes),
        chosen.gain,
        upper_bound([one.at_most() for one in ranked], costs, budget, threshold // grain),
        statistics.total,
        statistics.scale,
        unit,
        budget if capacity is None else capacity,
        sum(neurons) if unit == "neurons" else chosen.cost,
        nbytes,
        grain,
        statistics.exact,
    )


def shares(statistics: Statistics, index: gpuidx.GpuIndex, sizes: Sequence[int] | None) -> tuple[LayerShare, ...]:
    """What an index's neurons cover of the statistics, per layer. Bucket entries must be in range."""
    out = []
    for layer, (counts, bucket) in enumerate(zip(statistics.counts, index.buckets, strict=True)):
        total = int(counts.sum())
        covered = int(counts[bucket].sum()) / total if total else 0.0
        out.append(LayerShare(len(bucket), len(counts), covered, None if sizes is None else sizes[layer]))
    return tuple(out)


def check_widths(statistics: Statistics, widths: Sequence[int], where: str) -> None:
    """The statistics are of a model of these layers. Raises PlanError with all that are not."""
    if len(widths) != len(statistics.widths):
        raise PlanError(
            "another number of layers than the statistics have",
            where=where,
            expected=f"{len(statistics.widths):,}",
            got=f"{len(widths):,}",
            fix="are these the statistics of this model?",
        )
    problems = [
        Problem(f"layer {layer} has another number of neurons than its statistics", where, f"{mine:,}", f"{other:,}")
        for layer, (mine, other) in enumerate(zip(statistics.widths, widths, strict=True))
        if mine != other
    ]
    if problems:
        raise PlanError(problems[:20])


def curve(statistics: Statistics, grain: int, costs: Sequence[int], points: int = 160) -> list[tuple[int, float]]:
    """(cost, coverage) as the budget grows: the best groups per cost one after another, without a threshold."""
    gains = [np.array(rank(counts, grain, len(counts)).gains, np.int64) for counts in statistics.counts]
    each = np.concatenate(gains)
    price = np.repeat(np.asarray(costs, np.int64) * grain, [len(one) for one in gains])
    order = np.argsort(-each / price, kind="stable")
    cost, gain = np.cumsum(price[order]), np.cumsum(each[order])
    at = np.unique(np.linspace(0, len(each) - 1, points).astype(int)) if len(each) else np.zeros(0, int)
    total = statistics.total or 1
    return [(0, 0.0), *((int(cost[i]), int(gain[i]) / total) for i in at)]
