"""What a notebook shows of the package and of its objects: names, and one line each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

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


def test_tensors_are_those_of_an_export(tmp_path: Path) -> None:
    """Names, shapes and values, read in little memory; canonical ones in the family's axes."""
    crossdock.export(EXAMPLE, tmp_path / "hf", "hf", dtype="float32")
    wanted = load_file(tmp_path / "hf/model.safetensors")
    checkpoint = crossdock.open(EXAMPLE)
    found = dict(crossdock.tensors(checkpoint, layout="hf", memory="1MiB"))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    canonical = dict(crossdock.tensors(checkpoint))
    np.testing.assert_array_equal(canonical["embed"], wanted["model.embed_tokens.weight"])
    query = crossdock.read(checkpoint, "layers.0.attn_q")
    np.testing.assert_array_equal(query.reshape(-1, query.shape[-1]), wanted["model.layers.0.self_attn.q_proj.weight"])
    with pytest.raises(crossdock.UsageError, match="unknown tensor"):
        crossdock.read(checkpoint, "layers.0.attn_x")
