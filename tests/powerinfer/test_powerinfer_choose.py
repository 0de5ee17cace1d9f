"""The choice against an integer program solved by HiGHS, on random instances of every kind that the command makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from crossdock.errors import UsageError
from crossdock_powerinfer.bounds import upper_bound
from crossdock_powerinfer.charge import program
from crossdock_powerinfer.choose import best, choose
from crossdock_powerinfer.rank import hottest, rank
from crossdock_powerinfer.split import split
from crossdock_powerinfer.statistics import of_arrays


def highs(gains: Sequence[Sequence[int]], costs: Sequence[int], budget: int, minimum: int) -> int:
    """The optimum of the official model: a binary a group, one more a layer for the minimum."""
    each = np.concatenate(gains)
    layer = np.repeat(np.arange(len(gains)), [len(one) for one in gains])
    count, layers = len(each), len(gains)
    rows = np.zeros((1 + 2 * layers, count + layers))
    rows[0, :count] = np.asarray(costs)[layer]
    for number in range(layers):
        mine = np.flatnonzero(layer == number)
        rows[1 + number, mine], rows[1 + number, count + number] = -1, minimum
        rows[1 + layers + number, mine], rows[1 + layers + number, count + number] = 1, -len(mine)
    found = milp(
        np.concatenate([-each.astype(float), np.zeros(layers)]),
        constraints=LinearConstraint(rows, -np.inf, np.array([budget] + [0] * (2 * layers))),
        integrality=np.ones(count + layers),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert found.status == 0, found.message
    return round(-found.fun)


def instance(seed: int, kind: str) -> tuple[list[list[int]], list[int], int, int]:
    """Gains, costs, budget, minimum. Different widths always; ties now and then."""
    rng = np.random.default_rng([seed, len(kind)])
    layers = int(rng.integers(1, 6))
    high = int(rng.choice([4, 50, 10_000]))
    gains = [sorted(rng.integers(0, high, int(rng.integers(1, 8))).tolist(), reverse=True) for _ in range(layers)]
    own = kind.startswith("bytes")
    costs = rng.integers(1, 12, layers).tolist() if own else [1] * layers
    most = sum(cost * len(one) for cost, one in zip(costs, gains, strict=True))
    minimum = int(rng.integers(2, 5)) if kind.endswith("threshold") else 0
    return gains, costs, int(rng.integers(0, most + 3)), minimum


@pytest.mark.parametrize("kind", ["neurons", "neurons threshold", "bytes", "bytes threshold"])
def test_random_instances_have_the_optimum_of_highs(kind: str) -> None:
    for seed in range(100):
        gains, costs, budget, minimum = instance(seed, kind)
        found = choose(gains, costs, budget, minimum)
        assert found.gain == highs(gains, costs, budget, minimum), seed
        assert found.gain == sum(sum(one[:n]) for one, n in zip(gains, found.groups, strict=True))
        assert found.cost == sum(n * cost for n, cost in zip(found.groups, costs, strict=True)) <= budget
        assert all(n == 0 or minimum <= n <= len(one) for n, one in zip(found.groups, gains, strict=True))
        assert upper_bound(gains, costs, budget, minimum) >= found.gain, seed


def by_hand(counts: np.ndarray, grain: int) -> list[int]:
    """All groups of a layer, the highest first."""
    high = sorted(counts.tolist(), reverse=True)
    return [sum(high[start : start + grain]) for start in range(0, len(high) - grain + 1, grain)]


def layers_of(seed: int) -> tuple[list[np.ndarray], int]:
    """Counts and a grain: even, skewed or as a power law, with ties now and then, some layers narrower than a group."""
    rng = np.random.default_rng(seed)
    high = int(rng.choice([2, 4, 50, 10_000, 1 << 40]))
    layers = []
    for kind in rng.integers(0, 3, int(rng.integers(1, 9))):
        width = int(rng.integers(1, 300))
        counts = rng.integers(0, high, width) * (rng.random() ** 4 if kind == 1 else 1)
        if kind == 2:
            counts = rng.permutation(high * np.arange(1.0, width + 1) ** -(3 * rng.random()))
        layers.append(counts.astype(np.int64))
    return layers, int(rng.choice([1, 2, 4, 16]))


@pytest.mark.parametrize("minimum", [0, 3])
def test_a_part_of_the_ranking_gives_the_choice_of_the_whole(minimum: int) -> None:
    """Also of equal choices the same one, so that the files are the same."""
    partly = 0
    for seed in range(300):
        layers, grain = layers_of(seed)
        gains = [by_hand(counts, grain) for counts in layers]
        costs = [1 + seed % 3] * len(layers)
        budget = sum(len(one) for one in gains) * costs[0] // (1 + seed % 7)
        ranked, found = best(layers, grain, costs, budget, minimum)
        assert found == choose(gains, costs, budget, minimum), seed
        for one, whole in zip(ranked, gains, strict=True):
            depth, together = len(one.gains), min(minimum, len(one.gains))
            assert sum(one.gains[:together]) == sum(whole[:together])
            assert one.gains[together:] == tuple(whole[together:depth])
            assert sorted(one.gains, reverse=True) == list(one.gains)
            assert one.groups == len(whole)
            assert all(gain <= one.beyond for gain in whole[depth:])
        bound = upper_bound([one.at_most() for one in ranked], costs, budget, minimum)
        assert bound >= upper_bound(gains, costs, budget, minimum) >= found.gain
        partly += any(len(one.gains) < one.groups for one in ranked)
    assert partly > 60


def test_a_wrong_guess_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few groups are ranked at first."""
    monkeypatch.setattr("crossdock_powerinfer.choose.guess", lambda *_: 1 << 62)
    for seed in range(100):
        layers, grain = layers_of(seed)
        layers = [counts for counts in layers if len(counts) >= grain] or [np.arange(grain)]
        gains = [by_hand(counts, grain) for counts in layers]
        budget = sum(len(one) for one in gains) // (1 + seed % 7)
        assert best(layers, grain, [1] * len(layers), budget)[1] == choose(gains, [1] * len(layers), budget)


@pytest.mark.parametrize("minimum", [2, 10])
def test_what_a_price_rules_out_changes_nothing(minimum: int) -> None:
    """Against the dynamic program over all layers and numbers of groups: the same groups, not only the same gain."""
    for seed in range(200):
        layers, grain = layers_of(seed)
        gains = [by_hand(counts, grain) for counts in layers]
        most = sum(len(one) for one in gains) // (1 + seed % 5)
        _, taken = program([np.array(one, np.int64) for one in gains], [(minimum, len(one)) for one in gains], most)
        assert list(choose(gains, [1] * len(gains), most, minimum).groups) == [int(one[-1]) for one in taken], seed


def test_three_costs_at_the_size_of_a_model() -> None:
    """Bound and choice are computed independently: together they enclose the optimum."""
    rng = np.random.default_rng(7)
    gains = [sorted(rng.integers(1, 1 << 30, 43).tolist(), reverse=True) for _ in range(32)]
    costs = [(2304 * 3 + 4) * 256] * 20 + [(2304 * 2 + 3360 + 4) * 256] * 8 + [(4352 * 3 + 4) * 256] * 4
    budget = 1 << 30
    for minimum in (0, 10):
        found = choose(gains, costs, budget, minimum)
        bound = upper_bound(gains, costs, budget, minimum)
        assert found.cost <= budget
        assert found.gain <= bound <= found.gain * 1.01


def test_sums_beyond_float64() -> None:
    """Above 2**53 a float loses the ones that decide here."""
    big = 1 << 58
    gains = [[big + 1, 1], [big, 3]]
    assert choose(gains, [1, 1], 1).groups == (1, 0)
    assert choose(gains, [1, 1], 3).groups == (1, 2)
    assert choose(gains, [1, 1], 2, 2).groups == (0, 2)


@pytest.mark.parametrize(("high", "width"), [((1 << 31) - 2, 4), ((1 << 31) - 1, 8), (1 << 40, 8)])
@pytest.mark.parametrize("threshold", [0, 512])
def test_narrow_counts_have_wide_sums(high: int, width: int, threshold: int) -> None:
    """Counts are kept in int32 where they fit; their sums do not."""
    statistics = of_arrays([np.full(1024, high), np.arange(1024), np.full(1024, high)])
    assert {one.dtype.itemsize for one in statistics.counts} == {width}
    found = split(statistics, capacity=1024 + 512, threshold=threshold)
    assert (found.index.neurons, found.objective) == ((1024, 0, 512), 1536 * high)
    assert found.bound == found.objective


def test_groups_and_ties() -> None:
    counts = np.array([5, 1, 5, 9, 5, 0, 2], np.int64)
    whole, part = rank(counts, 2, 3), rank(counts, 2, 1)
    assert (whole.gains, whole.least, whole.beyond) == ((14, 10, 3), (5, 5, 1), -1)
    assert (part.gains, part.least, part.beyond) == ((14,), (5,), 10)
    assert part.at_most() == (14, 10, 10)
    together = rank(counts, 2, 3, 2)
    assert (together.gains, together.least, together.beyond) == ((12, 12, 3), (5, 5, 1), -1)
    assert hottest(counts, 2, 5).tolist() == [0, 3]
    assert hottest(counts, 3, 5).tolist() == [0, 2, 3]
    assert hottest(counts, 7, 0).tolist() == list(range(7))
    assert hottest(counts, 0, 0).tolist() == []


def test_a_width_that_is_no_multiple_of_the_grain() -> None:
    rng = np.random.default_rng(0)
    found = split(of_arrays([rng.integers(0, 99, 700), rng.integers(0, 99, 300)]), capacity=10_000)
    assert found.index.neurons == (512, 256)


def test_too_many_costs_are_an_error_not_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossdock_powerinfer.curves.MAX_STATES", 40)
    gains = [[1] * 50] * 3
    with pytest.raises(UsageError, match="too many different costs"):
        choose(gains, [1000, 1001, 1003], 1 << 40)
