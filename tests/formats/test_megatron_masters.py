"""`--weights master`: the optimizer's float32 weights of real saves, against those that torch reads by name.

The saves of a group are of one state of training, so that the one in which Megatron names its masters tells what the
flat, pickled and unnamed ones hold. All norms round to one, so that order alone tells them apart.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import crossdock
from conftest import TESTS
from crossdock.errors import FormatError, InputError, PlanError, UsageError
from crossdock.formats import registry
from crossdock.torchfile.reader import locate_single
from oracles.megatron_state import megatron_state

Saves = Callable[[str], Path]
NAMED = "optimizer.state.param."  # fully_reshardable
PLAIN = "optimizer.state.fp32_param."

# save -> its family, the save of the same state in which masters have names, and what is before these
GROUPS = {
    "dp2-full": ("llama", "dp2-full", NAMED),
    "dp2-flat": ("llama", "dp2-full", NAMED),
    "dp2-ranks": ("llama", "dp2-full", NAMED),
    "tp2-plain": ("llama", "tp2-plain", PLAIN),
    "tp2-plain-ranks": ("llama", "tp2-plain", PLAIN),
    "pp2-full": ("llama", "pp2-full", NAMED),
    "pp2-flat": ("llama", "pp2-full", NAMED),
    "pp2-ranks": ("llama", "pp2-full", NAMED),
    "ep2-plain": ("qwen3moe", "ep2-plain", PLAIN),
    "ep2-plain-ranks": ("qwen3moe", "ep2-plain", PLAIN),
    "ep2-full": ("qwen3moe", "ep2-full", NAMED),
    "ep2-flat": ("qwen3moe", "ep2-full", NAMED),
    "ep2-ranks": ("qwen3moe", "ep2-full", NAMED),
    "v013-modelspace": ("llama", "v013-like-full", NAMED),
    "v013-pickled": ("llama", "v013-like-full", NAMED),
    "v013-ranks": ("llama", "v013-like-full", NAMED),
}


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Saves:
    """Name of a save -> its folder, not to be written to."""
    base = tmp_path_factory.mktemp("masters")
    with tarfile.open(TESTS / "data/megatron/masters.tar.xz") as archive:
        archive.extractall(base, filter="data")
    return lambda name: base / name


def export(root: Path, out: Path, weights: str = "master") -> dict[str, np.ndarray]:
    crossdock.export(root, out, "hf", weights=weights)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", GROUPS)
def test_masters_are_those_that_torch_reads_by_name(name: str, saves: Saves, tmp_path: Path) -> None:
    family, named, before = GROUPS[name]
    expected = megatron_state(saves(named), family, before)
    found = export(saves(name), tmp_path / "hf")
    assert found.keys() == expected.keys()
    for key, values in found.items():
        assert values.dtype == np.float32
        assert values.tobytes() == expected[key].tobytes(), key
    rounded = megatron_state(saves(name), family) if "ranks" not in name else {}
    assert not rounded or any(not np.array_equal(rounded[key], values) for key, values in found.items())


def test_logits_from_masters_are_megatrons(megatron_checkpoint: Saves, tmp_path: Path) -> None:
    root = megatron_checkpoint("llama-v019-dist-dp2-dpreshardable-bf16")
    crossdock.export(root, tmp_path / "hf", "hf", weights="master")
    close = {}
    for reference in ("logits_masters", "logits"):
        report = crossdock.verify(
            tmp_path / "hf", logits=str(root / "tokens.npy"), reference=str(root / f"{reference}.npy")
        )
        close[reference] = report.ok
    assert close == {"logits_masters": True, "logits": False}


def test_plan_manifest_and_verify_know_the_weights(saves: Saves, tmp_path: Path) -> None:
    root, out = saves("dp2-flat"), tmp_path / "hf"
    master, model = crossdock.open(root, weights="master"), crossdock.open(root)
    assert crossdock.plan(master, "hf").weights == "master"
    assert crossdock.plan(master, "hf", dtype="bf16").digest != crossdock.plan(model, "hf", dtype="bf16").digest
    assert master.source.notes["weights"] == "the optimizer's float32 ones"
    crossdock.run(crossdock.plan(master, "hf"), out)
    manifest = json.loads((tmp_path / "hf.manifest.json").read_text())
    assert manifest["source"]["weights"] == "master"
    assert crossdock.verify(out, master).ok
    assert not crossdock.verify(out, model).ok


def test_masters_that_do_not_round_to_the_weights_are_refused(saves: Saves, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(saves("dp2-full"), root)
    source = registry.open_source(root)
    extent = source.tensors["", "decoder.layers.mlp.linear_fc2.weight"].extents[-1]
    with source.files[extent.file].path.open("r+b") as data:
        place = locate_single(data.fileno(), extent.offset, extent.nbytes, "")
        data.seek(place.offset + 41)
        (byte,) = data.read(1)
        data.seek(place.offset + 41)
        data.write(bytes([byte ^ 1]))
    with pytest.raises(PlanError, match="rounded to bfloat16, is not the model's") as caught:
        export(root, tmp_path / "hf")
    assert [problem.where for problem in caught.value.problems] == ["decoder.layers.mlp.linear_fc2.weight"]
    assert not (tmp_path / "hf").exists()
    assert export(root, tmp_path / "hf", "model")


def test_saves_without_masters_say_so(saves: Saves, megatron_checkpoint: Saves, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no float32 weights of an optimizer"):
        crossdock.open(megatron_checkpoint("llama-v019-dist-tp2pp2-bf16"), weights="master")
    export(saves("dp2-full"), tmp_path / "hf", "model")
    with pytest.raises(UsageError, match="hf has no float32 weights of an optimizer"):
        crossdock.open(tmp_path / "hf", weights="master")
    with pytest.raises(UsageError, match="'optimizer' is not one of"):
        crossdock.open(saves("dp2-full"), weights="optimizer")
    own = crossdock.open(megatron_checkpoint("llama-v019-fsdpdtensor-fp32"), weights="master")
    assert any("are float32 already" in notice for notice in own.described.notices)


def test_a_rank_whose_optimizer_is_missing_is_named(saves: Saves, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(saves("pp2-ranks"), root)
    next(root.glob("iter_*/mp_rank_00_001/distrib_optim.pt")).unlink()
    with pytest.raises(InputError, match="have no float32 master") as caught:
        crossdock.open(root, weights="master")
    assert "tp0.pp1.vpp0/" in caught.value.text()
