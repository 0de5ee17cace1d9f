"""`--to hf -q fp8`: every family by ModelOpt's rules in torch, what loaders read, and the way back."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crossdock import delivery
from crossdock.errors import CheckFailed, UsageError
from crossdock.formats import registry
from oracles import fp8_rules
from oracles.transformers_engine import transformers_logits
from support import hf_models
from support.reference_logits import reference_logits

TOKENS = np.random.default_rng(5).integers(0, 200, (1, 12))
# modules that are no linear layers, or that no loader takes in fp8 by row
STAY = ("embed", "wte", "wpe", "lm_head", "norm", "ln_", ".gate.weight", ".experts.", "classifier")


def made(source: Path, out: Path, quantize: str = "fp8", **said: object) -> Path:
    delivery.run(delivery.plan(delivery.open(source), "hf", quantize=quantize, **said), out)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
def test_every_family(recipe: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    source = hf_model(recipe)
    out = made(source, tmp_path / "fp8")
    given, found = fp8_rules.tensors_of(source), fp8_rules.tensors_of(out)
    columns = recipe.startswith("gpt2")
    wanted = {}
    for name, tensor in given.items():
        wanted[name] = tensor
        if tensor.dim() == 2 and not any(word in name for word in STAY):
            wanted[name], wanted[f"{name}_scale"] = fp8_rules.quantised(tensor, columns=columns)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    excluded = config["quantization_config"]["ignore"]
    for name, tensor in found.items():
        if tensor.dim() > 1 and name.endswith(".weight"):
            stays = any(fnmatch.fnmatchcase(name.removesuffix(".weight"), glob) for glob in excluded)
            assert stays == (tensor.dtype != fp8_rules.E4M3), name
    report = delivery.verify(out, source)
    assert report.ok
    measured = {check.name for check in report.tensors if check.figures is not None}
    assert measured == {name for name, tensor in found.items() if tensor.dtype == fp8_rules.E4M3}


@pytest.mark.parametrize("recipe", ["llama", "gpt2", "qwen2-tied", "mixtral", "deepseek_v3", "falcon-new", "gemma2"])
def test_logits_are_those_of_what_loaders_compute_with(
    recipe: str, hf_model: Callable[[str], Path], tmp_path: Path
) -> None:
    out = made(hf_model(recipe), tmp_path / "fp8")
    theirs = transformers_logits(fp8_rules.without_fp8(out, tmp_path / "plain"), TOKENS)
    ours = reference_logits(out, TOKENS)
    assert np.abs(theirs - ours).max() < 1e-4
    assert delivery.verify(out, hf_model(recipe), logits=TOKENS[0].tolist()).ok
    back = made_plain(out, tmp_path / "back")
    plain = fp8_rules.loaded(out)
    for name, tensor in fp8_rules.tensors_of(back).items():
        assert torch.equal(tensor.float(), plain[name]), name


def made_plain(source: Path, out: Path) -> Path:
    delivery.run(delivery.plan(delivery.open(source), "hf"), out)
    return out


def test_what_the_configuration_says(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    out = made(hf_model("qwen3_moe"), tmp_path / "fp8")
    whole = json.loads((out / "hf_quant_config.json").read_text())
    ignored = ["model.embed_tokens", "lm_head"]
    for layer in range(3):
        ignored += [
            f"model.layers.{layer}.mlp.gate",
            f"model.layers.{layer}.mlp.experts",
            f"model.layers.{layer}.mlp.experts*",
        ]
    assert sorted(whole["quantization"].pop("exclude_modules")) == sorted(ignored)
    assert whole["quantization"] == {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "kv_cache_quant_algo": None}
    assert whole["producer"]["name"] == "modelopt"  # vLLM refuses another
    inline = json.loads((out / "config.json").read_text())["quantization_config"]
    assert sorted(inline.pop("ignore")) == sorted(ignored)
    assert inline.pop("producer") == whole["producer"]
    number = {"num_bits": 8, "type": "float"}
    assert inline == {
        "quant_method": "modelopt",
        "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
        "config_groups": {
            "group_0": {
                "input_activations": number | {"dynamic": True, "strategy": "token"},
                "weights": number | {"dynamic": False, "strategy": "channel"},
                "targets": ["Linear"],
            }
        },
    }


def test_an_fp8_cache_is_said_with_scales_of_one(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    out = made(hf_model("llama"), tmp_path / "fp8", fp8_kv_cache=True)
    said = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert said["kv_cache_quant_algo"] == "FP8"
    inline = json.loads((out / "config.json").read_text())["quantization_config"]
    assert inline["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    tensors = fp8_rules.tensors_of(out)
    for layer in range(3):
        for letter in "kv":
            scale = tensors[f"model.layers.{layer}.self_attn.{letter}_proj.{letter}_scale"]
            assert (scale.dtype, scale.shape, float(scale)) == (torch.float32, (), 1.0)
    assert delivery.verify(out, hf_model("llama")).ok
    with pytest.raises(UsageError, match="separate weights of keys and values"):
        made(hf_model("falcon"), tmp_path / "other", fp8_kv_cache=True)
    with pytest.raises(UsageError, match="fp8 weights"):
        delivery.plan(delivery.open(hf_model("llama")), "hf", fp8_kv_cache=True)


def odd(tmp_path: Path, row: torch.Tensor) -> Path:
    """A float32 llama whose first row of a matrix is `row` (64 numbers)."""
    folder = hf_models.make_hf("llama", tmp_path / "odd", dtype="float32")
    tensors = fp8_rules.tensors_of(folder)
    tensors["model.layers.1.mlp.up_proj.weight"][0] = row
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-37, 3.4e38])
def test_scales_are_positive_and_normal(size: float, tmp_path: Path) -> None:
    row = torch.linspace(-1, 1, 64) * size
    out = made(odd(tmp_path, row), tmp_path / "fp8")
    tensors = fp8_rules.tensors_of(out)
    scale = tensors["model.layers.1.mlp.up_proj.weight_scale"][0]
    codes = tensors["model.layers.1.mlp.up_proj.weight"][0].float()
    assert torch.isfinite(scale)
    assert scale >= torch.finfo(torch.float32).tiny
    assert scale == (1 if size == 0 else max(row.abs().max() / 448, torch.tensor(torch.finfo(torch.float32).tiny)))
    assert torch.equal(codes, (row / scale).to(fp8_rules.E4M3).float())
    assert torch.isfinite(codes).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    row = torch.ones(64)
    row[5] = value
    with pytest.raises(CheckFailed, match="up_proj") as caught:
        made(odd(tmp_path, row), tmp_path / "fp8")
    assert "export without -q" in str(caught.value)
    assert not (tmp_path / "fp8").exists()


@pytest.mark.parametrize("memory", [1 << 20, 64 << 20])
def test_bytes_do_not_depend_on_the_memory(memory: int, tmp_path: Path) -> None:
    """Rows that fit no block (70,000 values) are gone through twice; the bytes are the same."""
    folder = hf_models.make_hf("llama", tmp_path / "wide", intermediate_size=70_000, num_hidden_layers=1)
    plan = delivery.plan(delivery.open(folder), "hf", quantize="fp8")
    delivery.run(plan, tmp_path / "fp8", memory=memory, workers=1)
    name = "model.layers.0.mlp.down_proj.weight"
    found = fp8_rules.tensors_of(tmp_path / "fp8")
    codes, scale = fp8_rules.quantised(fp8_rules.tensors_of(folder)[name])
    assert torch.equal(found[name].view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(found[f"{name}_scale"], scale)
    assert delivery.verify(tmp_path / "fp8", folder, memory=memory, workers=1).ok


def test_the_error_is_in_report_and_manifest(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    source = hf_model("llama")
    report = delivery.run(delivery.plan(delivery.open(source), "hf", quantize="fp8"), tmp_path / "fp8")
    given, plain = fp8_rules.tensors_of(source), fp8_rules.loaded(tmp_path / "fp8")
    manifest = json.loads((tmp_path / "fp8.manifest.json").read_text())
    written = {tensor["name"]: tensor for tensor in manifest["tensors"]}
    count = 0
    for tensor in report.tensors:
        if tensor.dtype != "float8_e4m3fn":
            assert (tensor.figures, written[tensor.name].get("error")) == (None, None)
            continue
        count += 1
        error = plain[tensor.name].double() - given[tensor.name].double()
        relative = float(error.norm() / given[tensor.name].double().norm())
        assert tensor.figures is not None
        assert tensor.figures.relative_rms == pytest.approx(relative, rel=1e-5)
        assert tensor.figures.max_abs == pytest.approx(float(error.abs().max()), rel=1e-5)
        assert written[tensor.name]["error"]["relative_rms"] == pytest.approx(relative, rel=1e-5)
    assert count == 21


def test_shards_keep_scales_in_the_index(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    out = made(hf_model("llama"), tmp_path / "fp8", max_shard_size=40_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == fp8_rules.tensors_of(out).keys()
    assert len(set(index.values())) > 3
    assert delivery.verify(out, hf_model("llama")).ok


@pytest.mark.parametrize("planted", ["code", "scale", "config", "listed"])
def test_verify_finds_planted_faults(planted: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    out = made(hf_model("llama"), tmp_path / "fp8")
    tensors = fp8_rules.tensors_of(out)
    name = "model.layers.2.self_attn.v_proj.weight"
    if planted == "code":
        tensors[name].view(torch.uint8)[3, 7] ^= 1
    if planted == "scale":
        tensors[f"{name}_scale"][3] *= 1.01
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    if planted in ("config", "listed"):
        file = out / ("config.json" if planted == "config" else "hf_quant_config.json")
        file.write_text(file.read_text().replace('"lm_head"', '"lm_heat"'))
    report = delivery.verify(out, hf_model("llama"))
    assert not report.ok
    wrong = [check.name for check in report.tensors if check.status != "equal"]
    assert wrong == {"code": [name], "scale": [f"{name}_scale"]}.get(planted, [])
    assert bool(report.problems) == (planted in ("config", "listed"))


def test_verify_misses_either_half_of_the_configuration(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    out = made(hf_model("llama"), tmp_path / "fp8")
    whole = (out / "hf_quant_config.json").read_text()
    (out / "hf_quant_config.json").unlink()
    report = delivery.verify(out, hf_model("llama"))
    assert not report.ok
    assert ["hf_quant_config.json" in problem.where for problem in report.problems] == [True]
    (out / "hf_quant_config.json").write_text(whole)
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    report = delivery.verify(out, hf_model("llama"))
    assert not report.ok
    assert [problem.where for problem in report.problems] == ["quantization_config"]


def test_the_next_step_serves_it(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    """SGLang has no scales by row; a plain folder needs no words."""
    target = registry.target("hf")
    (said,) = target.next_steps(made(hf_model("llama"), tmp_path / "fp8"), ["source"])
    assert f"trtllm-serve {tmp_path / 'fp8'} " in said
    assert f"vllm serve {tmp_path / 'fp8'}" in said
    assert "sglang" not in said
    whole = json.loads((tmp_path / "fp8/hf_quant_config.json").read_text())
    whole["quantization"]["quant_algo"] = "FP8"
    (tmp_path / "fp8/hf_quant_config.json").write_text(json.dumps(whole))
    assert "sglang.launch_server" in target.next_steps(tmp_path / "fp8", ["source"])[0]
    assert target.next_steps(hf_model("llama"), ["source"]) == ()


def test_other_targets_refuse_by_name(hf_model: Callable[[str], Path]) -> None:
    checkpoint = delivery.open(hf_model("llama"))
    with pytest.raises(UsageError, match="fp8_static"):
        delivery.plan(checkpoint, "gguf", quantize="fp8-static")
    with pytest.raises(UsageError, match="w8a16"):
        delivery.plan(checkpoint, "hf", quantize="w8a16")
    with pytest.raises(UsageError, match="q8_0") as caught:
        delivery.plan(checkpoint, "hf", quantize="q8_0")
    assert "-q fp8 or fp8_static" in str(caught.value)
