"""The hint for a model that is not supported: the family that knows most of its tensors' names."""

from __future__ import annotations

import pytest

from crossdock.planning.tensors.likeness import nearest_family

LLAMA = [
    f"model.layers.{layer}.{name}.weight"
    for layer in range(2)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
]
NEMOTRON_H = [
    "backbone.layers.0.mixer.in_proj.weight",
    "backbone.layers.0.mixer.A_log",
    "backbone.layers.1.mixer.q_proj.weight",
]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (LLAMA, "; the names are known, the configuration differs"),
        ([*LLAMA, "model.layers.0.extra.weight"], "; not known there: model.layers.#.extra.weight"),
        ([*LLAMA, *(f"model.{name}" for name in "abcd")], "not known there: model.a, model.b, model.c and 1 more"),
        (NEMOTRON_H, "nemotron_h"),
        (["transformer.strange.weight", "other"], ""),
        ([], ""),
    ],
)
def test_the_family_that_knows_most_names_is_named_with_what_it_lacks(names: list[str], says: str) -> None:
    got = nearest_family(names, "hf")
    assert says in got
    assert bool(got) == bool(says)
