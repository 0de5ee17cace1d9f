"""What a notebook shows of the package and of its objects: names, and one line each."""

from __future__ import annotations

from pathlib import Path

import crossdock
from crossdock import errors

EXAMPLE = Path(__file__).parents[2] / "examples/tiny-kjv"


def test_the_package_lists_all_that_it_offers() -> None:
    assert set(crossdock.__all__) == set(dir(crossdock))
    assert all(getattr(crossdock, name) is not None for name in dir(crossdock))


def test_every_error_is_offered() -> None:
    kinds = {name for name, one in vars(errors).items() if isinstance(one, type) and one.__module__ == errors.__name__}
    assert kinds <= set(crossdock.__all__)


def test_objects_are_shown_in_one_line() -> None:
    checkpoint = crossdock.open(EXAMPLE)
    plan = crossdock.plan(checkpoint, "hf")
    for one in (checkpoint, plan):
        assert len(repr(one)) < 300
        assert "\n" not in repr(one)
    assert "llama, megatron" in repr(checkpoint)
    assert "megatron to hf" in repr(plan)
