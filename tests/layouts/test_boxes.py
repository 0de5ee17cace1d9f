"""Strided boxes against brute force: every index of a nested set, every chunk of a container."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from crossdock.layout.boxes import runs


def indices(start: int, axes: list[tuple[int, int]], ranges: tuple[tuple[int, int], ...]) -> list[int]:
    """Every index of the part `ranges` of a nested set."""
    along = [range(low, high) for low, high in ranges]
    return [start + sum(i * s for i, (s, _) in zip(at, axes, strict=True)) for at in itertools.product(*along)]


@pytest.mark.parametrize("seed", range(40))
def test_runs_are_exactly_the_indices_in_the_window(seed: int) -> None:
    rng = random.Random(seed)
    axes: list[tuple[int, int]] = []
    step = rng.choice([1, 1, 2, 3])
    for _ in range(rng.randrange(0, 4)):
        size = rng.randrange(1, 5)
        axes.insert(0, (step, size))
        step = step * size + rng.choice([0, 0, 1, 5])
    start = rng.randrange(0, 10)
    everything = indices(start, axes, tuple((0, n) for _, n in axes))
    top = max(everything) + 5
    for _ in range(30):
        low = rng.randrange(-2, top)
        high = rng.randrange(low, top + 3)
        got: list[int] = []
        for first, ranges in runs(start, axes, low, high):
            part = indices(start, axes, ranges)
            assert first == min(part)
            got += part
        assert sorted(got) == sorted(i for i in everything if low <= i < high)
        assert len(got) == len(set(got))


def test_a_single_element_is_in_or_out() -> None:
    assert list(runs(3, [], 3, 4)) == [(3, ())]
    assert list(runs(3, [], 4, 9)) == []
    assert np.array(indices(0, [(1, 3)], ((0, 3),))).tolist() == [0, 1, 2]
