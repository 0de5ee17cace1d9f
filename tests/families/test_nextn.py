"""Layers for multi-token prediction: kept by default, left out by `no_mtp`, alone by `mtp_only`, as llama.cpp's
converter does it with --no-mtp and --mtp."""

from __future__ import annotations

import re
from pathlib import Path

import family_checks as checks
import numpy as np
import pytest
from family_cases import case, listed, names, write_folder

import crossdock.delivery as delivery
from crossdock.errors import PlanError, UsageError
from oracles.llama_engine import llama_logits

CASES = tuple(name for name in names() if name.endswith("-mtp"))
SHARED = {"token_embd.weight", "output_norm.weight", "output.weight"}


def beyond(name: str, layers: int) -> bool:
    """Whether a GGUF tensor is of a layer behind the model's own."""
    found = re.match(r"blk\.(\d+)\.", name)
    return bool(found) and int(found[1]) >= layers


@pytest.mark.parametrize("name", CASES)
def test_tensors_without_and_only_of_these_layers_are_the_converter_s(name: str, tmp_path: Path) -> None:
    model, layers = case(name), case(name).config["num_hidden_layers"]
    assert model.gguf is not None
    source = model.write(tmp_path / "hf")
    every = {tensor.name: (tensor.type, tensor.sha256) for tensor in model.gguf.tensors}
    assert any(beyond(tensor, layers) for tensor in every)
    trunk = {tensor for tensor in every if not beyond(tensor, layers)}
    for option, expected in (("no_mtp", trunk), ("mtp_only", set(every) - trunk | SHARED & trunk)):
        out = checks.export(source, tmp_path / f"{option}.gguf", "gguf", dtype="float32", **{option: True})
        got = {tensor.name: (tensor.type, tensor.sha256) for tensor in listed(out).tensors}
        # decays may be a step of float32 away, see family_checks
        assert {k: v for k, v in got.items() if not k.endswith("ssm_a")} == {
            k: every[k] for k in expected if not k.endswith("ssm_a")
        }
        assert got.keys() == expected
    keys = {key.partition(".")[2]: value for key, (_, value) in listed(tmp_path / "no_mtp.gguf").keys.items()}
    assert keys["block_count"] == layers
    assert not keys.get("nextn_predict_layers")
    np.testing.assert_allclose(
        llama_logits(tmp_path / "no_mtp.gguf", model.tokens)[..., : model.logits.shape[-1]],
        model.logits,
        atol=model.recipe.tolerance,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_folder_without_these_layers_has_all_others(name: str, tmp_path: Path) -> None:
    model = case(name)
    out = checks.export(model.write(tmp_path / "hf"), tmp_path / "out", "hf", no_mtp=True)
    state = model.state()
    kept = {k: v for k, v in state.items() if k in checks.stored(out)}
    assert checks.state_differences(checks.stored(out), kept) == []
    layers = model.config["num_hidden_layers"]
    own = re.compile(rf"mtp\.|model\.layers\.{layers}\.")
    assert state.keys() - kept.keys() == {tensor for tensor in state if own.match(tensor)}
    assert delivery.open(out).config.num_nextn_predict_layers == 0
    plan = delivery.plan(delivery.open(tmp_path / "hf"), "hf", no_mtp=True)
    assert any("multi-token prediction left out" in sentence for sentence in plan.warnings)


def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    plain = case("llama")
    source = delivery.open(write_folder(tmp_path / "plain", plain.config, plain.state()))
    with pytest.raises(PlanError, match="no layers for multi-token prediction"):
        delivery.plan(source, "gguf", mtp_only=True)
    assert delivery.plan(source, "gguf", no_mtp=True).tensors
    with pytest.raises(UsageError, match="leave nothing to write"):
        delivery.plan(source, "gguf", mtp_only=True, no_mtp=True)
    with pytest.raises(UsageError, match="no option"):
        delivery.plan(source, "hf", mtp_only=True)
