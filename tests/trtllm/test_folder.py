"""What lies in the folder beside the ranks, and what is told for reading it back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from conftest import TESTS
from crossdock import delivery
from oracles.files import hf_hashes
from support import hf_models

KJV, TOKENIZER = TESTS.parent / "examples/tiny-kjv", TESTS.parent / "examples/tiny-kjv-tokenizer"
NAMES = ("tokenizer.json", "tokenizer_config.json")


def test_the_tokenizer_that_is_given_goes_along_and_on(tmp_path: Path, crossdock: Callable[..., Any]) -> None:
    words = ("--to", "trtllm", "--tp", "2", "--tokenizer", TOKENIZER, "-o", tmp_path / "trt", "--no-progress")
    said = crossdock("export", KJV, *words).ok().stdout
    assert "no tokenizer" not in said
    assert f"crossdock export {KJV} --tokenizer {TOKENIZER} --to hf -o" in said
    for to, out in (("hf", tmp_path / "hf"), ("trtllm", tmp_path / "again")):
        crossdock("export", tmp_path / "trt", "--to", to, "-o", out, "--no-progress").ok()
        for name in NAMES:
            assert (
                (out / name).read_bytes() == (tmp_path / "trt" / name).read_bytes() == (TOKENIZER / name).read_bytes()
            )
    crossdock("verify", tmp_path / "trt", "--against", KJV, "--tokenizer", TOKENIZER).ok()
    crossdock("export", tmp_path / "trt", "--to", "gguf", "-o", tmp_path / "m.gguf", "--tokenizer", TOKENIZER).ok()
    (tmp_path / "trt/tokenizer.json").write_text("{}")
    damaged = crossdock("verify", tmp_path / "trt", "--against", KJV, "--tokenizer", TOKENIZER)
    assert damaged.code == 1
    assert "tokenizer.json" in damaged.stderr + damaged.stdout


def test_that_of_the_source_goes_along(tmp_path: Path) -> None:
    folder = hf_models.make_hf("llama", tmp_path / "hf", vocab_size=1000)
    for name in NAMES:
        shutil.copy(TOKENIZER / name, folder)
    plan = delivery.plan(delivery.open(folder), "trtllm")
    assert {file.name for file in plan.files if file.copy_of} == {*NAMES, "generation_config.json"}
    bare = delivery.plan(delivery.open(KJV), "trtllm")
    assert any("--tokenizer" in warning for warning in bare.warnings)


@pytest.mark.parametrize("router", ["bfloat16", "float32"])
def test_a_router_comes_back_as_it_was(router: str, tmp_path: Path) -> None:
    """In rank files it is float32 whatever it was; without --dtype the way back gives the very tensors."""
    folder = hf_models.make_hf("mixtral", tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(".gate.weight")]:
        weights[name] = weights[name].astype(router)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    delivery.run(delivery.plan(delivery.open(folder), "trtllm", pp=2), tmp_path / "trt", workers=1)
    again = delivery.plan(delivery.open(tmp_path / "trt"), "trtllm", pp=3)
    delivery.run(again, tmp_path / "again", workers=1)
    for out in ("trt", "again"):
        delivery.run(delivery.plan(delivery.open(tmp_path / out), "hf"), tmp_path / f"{out}-hf", workers=1)
        assert hf_hashes(tmp_path / f"{out}-hf") == hf_hashes(folder)
    delivery.run(delivery.plan(delivery.open(folder), "trtllm", dtype="float16"), tmp_path / "f16", workers=1)
    back = delivery.plan(delivery.open(tmp_path / "f16"), "hf")
    assert {tensor.dtype for tensor in back.tensors} == {"float16"}


def test_damage_names_the_rank_and_the_tensor(tmp_path: Path, crossdock: Callable[..., Any]) -> None:
    folder = hf_models.make_hf("mixtral", tmp_path / "hf", num_local_experts=4)
    words = ("export", folder, "--to", "trtllm", "--tp", "4", "--pp", "3", "--moe-ep", "2", "-o", tmp_path / "trt")
    crossdock(*words).ok()
    for number, name in ((7, "attention.dense.weight"), (9, "mlp.fc.weight")):
        file = tmp_path / f"trt/rank{number}.safetensors"
        whole = file.read_bytes()
        weights = load_file(file)
        weights[f"transformer.layers.0.{name}"].flat[3] *= 2
        save_file(weights, file, {"format": "pt"})
        found = crossdock("verify", tmp_path / "trt", "--against", folder, "--json")
        assert found.code == 1
        wrong = [tensor["name"] for tensor in found.json()["tensors"] if tensor["status"] != "equal"]
        assert wrong == [f"rank{number}.safetensors/transformer.layers.0.{name}"]
        file.write_bytes(whole[:-1])
        broken = crossdock("verify", tmp_path / "trt", "--against", folder)
        assert broken.code == 3
        assert f"rank{number}.safetensors" in broken.stderr
        file.write_bytes(whole)
    crossdock("verify", tmp_path / "trt", "--against", folder).ok()
