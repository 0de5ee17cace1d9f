"""The hint for a model that is not supported: the family that knows most of its tensors' names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from crossdock import delivery
from crossdock.errors import PlanError
from crossdock.planning.tensors.likeness import nearest_family

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tiny-kjv"

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


def test_weights_of_another_family_are_one_problem(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    delivery.export(EXAMPLE, folder, to="hf")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError) as caught:
        delivery.plan(delivery.open(folder), to="gguf")
    (problem,) = caught.value.problems
    assert problem.what == "the names of the tensors are not those of phi3"
    assert "20 tensors that it does not know" in problem.got
    assert "model.layers.#.mlp.gate_proj.weight" in problem.got


def test_a_tensor_too_many_is_still_named_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    delivery.export(EXAMPLE, folder, to="hf")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.extra.weight": weights["model.norm.weight"]}, folder / "model.safetensors")
    with pytest.raises(PlanError, match="no layout rule uses it"):
        delivery.plan(delivery.open(folder), to="gguf")
