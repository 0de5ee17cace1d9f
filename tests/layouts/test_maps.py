"""Value maps: functions that layouts name, their inverses, and what is left between two of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from crossdock.codecs.mapping import apply_steps
from crossdock.layout.maps import MAPS, Step, Steps, between, inverse, shown, storing, sum_alone

WAYS = {
    "as it is": (),
    "decay": storing("-exp", (), 0),
    "exp": storing("exp", (), 0),
    "scaled": storing("", (0.37,), 0),
    "plus one": storing("", (1,), 1.0),
    "all": storing("-exp", (3.0, 0.5), -2.0),
}
VALUES = np.random.default_rng(0).uniform(-3, 4, 40000).astype(np.float32)


def through(values: np.ndarray, steps: Steps) -> np.ndarray:
    out = values.copy()
    apply_steps(out, steps)
    return out


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_between_two_that_store_the_same_nothing_is_left(way: Steps) -> None:
    assert between(way, way) == ()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_inverse_leads_back(way: Steps) -> None:
    assert inverse(inverse(way)) == way
    np.testing.assert_allclose(through(through(VALUES, way), inverse(way)), VALUES, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(("one", "other"), list(itertools.product(WAYS, WAYS)))
def test_between_is_back_to_the_model_and_out_again(one: str, other: str) -> None:
    stored = through(VALUES, WAYS[one])
    expected = through(through(stored, inverse(WAYS[one])), WAYS[other])
    np.testing.assert_allclose(through(stored, between(WAYS[one], WAYS[other])), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sign"), [("exp", 1), ("-exp", -1)])
def test_exponentials_are_within_a_step_of_float32_of_pytorch(name: str, sign: int) -> None:
    theirs = sign * torch.exp(torch.from_numpy(VALUES)).numpy()
    np.testing.assert_array_max_ulp(through(VALUES, MAPS[name]), theirs, 1)


def test_a_decay_that_is_not_negative_has_no_logarithm() -> None:
    back = through(np.array([0.5, -0.5], np.float32), inverse(MAPS["-exp"]))
    assert np.isnan(back[0])
    assert back[1] == np.float32(np.log(0.5))


@pytest.mark.parametrize(
    ("steps", "alone"), [((), 0.0), ((Step("add", 2.0),), 2.0), (MAPS["exp"], None), (WAYS["all"], None)]
)
def test_only_a_sum_is_a_sum_alone(steps: Steps, alone: float | None) -> None:
    assert sum_alone(steps) == alone


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (MAPS["-exp"], "-exp(x)"),
        (inverse(MAPS["-exp"]), "log(-x)"),
        (WAYS["scaled"], "x * 0.37"),
        (inverse(WAYS["plus one"]), "x + -1"),
    ],
)
def test_people_read_what_values_go_through(steps: Steps, text: str) -> None:
    assert shown(steps) == text


@pytest.mark.parametrize("size", [1, 3, 6, 8, 12, 60, 64, 72, 128, 160, 256, 384, 512])
def test_what_is_less_its_mean_is_what_pytorch_makes_of_it(size: int) -> None:
    for start in range(0, 20_000, 1000):
        values = VALUES[start : start + size]
        theirs = torch.from_numpy(values) - torch.from_numpy(values).mean()
        np.testing.assert_array_equal(through(values, MAPS["centred"]), theirs.numpy())


def test_what_is_less_its_mean_stays_so_on_the_way_back() -> None:
    centred = MAPS["centred"]
    np.testing.assert_allclose(through(VALUES, centred), VALUES - VALUES.mean(dtype=np.float64), atol=1e-6)
    assert between(centred, centred) == inverse(centred) == ()
    assert between((), centred) == centred
    assert shown(centred) == "x - mean(x)"
