"""`--to hf -q fp8_static`: the scales of fp8 training from every form of Megatron checkpoint, and from FP8 folders."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "trtllm"))
from test_fp8 import CASE, FORMS, state_dict

from crossdock import delivery
from crossdock.errors import PlanError
from oracles import fp8_rules
from oracles.megatron_state import _Unpickler, global_state
from oracles.trtllm_files import rank_files, what_the_loader_reads
from support.megatron_writers import Ranks, Scales, write_ranks, write_torch_dist

# a module of Megatron -> what it becomes in Hugging Face's names
MODULES = {
    "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.linear_proj": ("self_attn.o_proj",),
    "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.linear_fc2": ("mlp.down_proj",),
}
EXPERTS = {"linear_fc1": ("w1", "w3"), "linear_fc2": ("w2",)}


def scales_for(state: dict[str, Any]) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Scales of every module that has a matrix, all different: by module of Megatron, and by Hugging Face's weights."""
    modules: dict[str, tuple[float, float]] = {}
    weights: dict[str, tuple[float, float]] = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)\.weight", key)
        if match is None or (match[2] not in MODULES and ".experts." not in match[2]):
            continue
        # powers of two, so that the reciprocal that newer files keep is exact
        pair = (2.0 ** -(3 + len(modules) % 5), float(2.0 ** np.ceil(np.log2(np.abs(tensor).max() / 448))))
        modules[key.removesuffix(".weight")] = pair
        stem = f"model.layers.{match[1]}"
        expert = re.fullmatch(r"mlp\.experts\.(\d+)\.(linear_fc[12])", match[2])
        names = MODULES.get(match[2], ())
        if expert is not None:
            names = tuple(f"block_sparse_moe.experts.{expert[1]}.{word}" for word in EXPERTS[expert[2]])
        weights |= {f"{stem}.{name}.weight": pair for name in names}
    return modules, weights


def check(source: Path, out: Path, plain: Path, scales: dict[str, tuple[float, float]]) -> None:
    """Codes, scales and what is listed, by torch."""
    checkpoint = delivery.open(source)
    delivery.run(delivery.plan(checkpoint, "hf", quantize="fp8_static"), out, workers=1)
    delivery.run(delivery.plan(checkpoint, "hf"), plain, workers=1)
    given, found = fp8_rules.tensors_of(plain), fp8_rules.tensors_of(out)
    wanted = dict(given)
    for name, (activation, weight) in scales.items():
        wanted[name] = (given[name].float() / weight).to(fp8_rules.E4M3)
        wanted[f"{name}_scale"] = torch.tensor(weight)
        wanted[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(activation)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert (
            torch.equal(found[name], tensor)
            if tensor.dtype != fp8_rules.E4M3
            else torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
        ), name
    said = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == "FP8"
    assert set(said["exclude_modules"]) == {"lm_head"} | {
        name.removesuffix(".weight") for name, tensor in given.items() if tensor.dim() > 1 and name not in scales
    }
    report = delivery.verify(out, checkpoint, workers=1)
    assert report.ok
    assert {one.name for one in report.tensors if one.figures} == scales.keys()
    assert delivery.diff(checkpoint, out, workers=1).same


FORMS_OF = {
    "dist stacked, tensors": {"stacked": True},
    "dist stacked, BytesIO": {"stacked": True, "states_as_tensors": False},
    "dist by layer": {"stacked": False},
    "dist singleton": {"singleton": True},
}


@pytest.mark.parametrize(
    ("name", "form"),
    [("llama-v019-dist-tp2pp2-bf16", form) for form in FORMS_OF]
    + [("mixtral-v019-dist-tp2ep2pp2-bf16", form) for form in FORMS_OF if form != "dist singleton"],
)
def test_torch_dist(name: str, form: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    state, args = global_state(megatron_checkpoint(name))
    modules, weights = scales_for(state)
    write_torch_dist(tmp_path / "root", state, args, tp=2, scales=modules, **FORMS_OF[form])  # type: ignore[arg-type]
    check(tmp_path / "root", tmp_path / "out", tmp_path / "plain", weights)


RANKS = {
    "llama tp2, TE": ("llama-v019-dist-tp2pp2-bf16", Ranks((((0, 1, 2, 3),),), tp=2, experts="te")),
    "llama vpp2, local": ("llama-v019-dist-tp2pp2-bf16", Ranks((((0,), (2,)), ((1,), (3,))))),
    "mixtral ep2, TE": ("mixtral-v019-dist-tp2ep2pp2-bf16", Ranks((((0, 1),), ((2, 3),)), tp=2, ep=2, experts="te")),
    "mixtral ep2, local": ("mixtral-v019-dist-tp2ep2pp2-bf16", Ranks((((0, 1, 2, 3),),), ep=2)),
}


@pytest.mark.parametrize("form", RANKS)
def test_rank_files(form: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    name, how = RANKS[form]
    state, args = global_state(megatron_checkpoint(name))
    modules, weights = scales_for(state)
    write_ranks(tmp_path / "root", state, args, how, modules)
    check(tmp_path / "root", tmp_path / "out", tmp_path / "plain", weights)


def test_layers_without_scales_stay_and_are_listed(megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Runs may keep their first and last layers in bfloat16."""
    state, args = global_state(megatron_checkpoint("llama-v019-dist-tp2pp2-bf16"))
    modules, weights = scales_for(state)
    kept: Scales = {name: pair for name, pair in modules.items() if ".layers.0." not in name}
    write_torch_dist(tmp_path / "root", state, args, scales=kept)
    check(tmp_path / "root", tmp_path / "out", tmp_path / "plain",
          {name: pair for name, pair in weights.items() if ".layers.0." not in name})  # fmt: skip


def test_half_of_a_layers_experts_is_refused(megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    state, args = global_state(megatron_checkpoint("mixtral-v019-dist-tp2ep2pp2-bf16"))
    modules, _ = scales_for(state)
    some = {name: pair for name, pair in modules.items() if ".layers.1.mlp.experts.2." not in name}
    write_torch_dist(tmp_path / "root", state, args, scales=some)
    with pytest.raises(PlanError, match="only some experts of a layer"):
        delivery.plan(delivery.open(tmp_path / "root"), "hf", quantize="fp8_static")


def from_state_dict(folder: Path, tmp_path: Path) -> Path:
    """The case's fp8 state dict as a static FP8 folder."""
    said = json.loads((folder / "case.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said["transformer_config"] | said["helper"]))
    file = state_dict(folder, tmp_path / "model.pt", FORMS["uint8 of pickle"])
    checkpoint = delivery.open(file, config=tmp_path / "config.json", family="llama")
    delivery.run(delivery.plan(checkpoint, "hf", quantize="fp8_static", fp8_kv_cache=True), tmp_path / "hf", workers=1)
    assert delivery.verify(tmp_path / "hf", checkpoint, workers=1).ok
    return tmp_path / "hf"


def test_a_static_folder_becomes_what_megatrons_exporter_writes(
    trtllm_case: Callable[[str], Path], tmp_path: Path
) -> None:
    """state dict -> FP8 folder -> rank files, equal to the bit to those of Megatron's own exporter."""
    folder = trtllm_case(CASE)
    hf = from_state_dict(folder, tmp_path)
    plan = delivery.plan(delivery.open(hf), "trtllm", tp=2, quantize="fp8", fp8_kv_cache=True, dtype="bf16")
    delivery.run(plan, tmp_path / "trt", workers=1)
    assert rank_files(tmp_path / "trt") == rank_files(folder)
    assert what_the_loader_reads(tmp_path / "trt") == what_the_loader_reads(folder)


def test_a_static_folder_comes_back_as_itself(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    hf = from_state_dict(trtllm_case(CASE), tmp_path)
    plan = delivery.plan(delivery.open(hf), "hf", quantize="fp8_static", fp8_kv_cache=True)
    delivery.run(plan, tmp_path / "again", workers=1)
    for file in sorted(hf.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_transformers_names_of_static_scales(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    """weight_scale_inv and activation_scale, as transformers and Mistral name them: the same numbers as ModelOpt's."""
    hf = from_state_dict(trtllm_case(CASE), tmp_path)
    for options, name in (({"quantize": "fp8_static"}, "static"), ({}, "plain")):
        delivery.run(delivery.plan(delivery.open(hf), "hf", **options), tmp_path / name, workers=1)
    renamed = {
        name.replace("weight_scale", "weight_scale_inv").replace("input_scale", "activation_scale"): tensor
        for name, tensor in fp8_rules.tensors_of(hf).items()
    }
    assert sum(name.endswith("activation_scale") for name in renamed) > 1
    save_file(renamed, hf / "model.safetensors", {"format": "pt"})
    said = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    (hf / "hf_quant_config.json").unlink()
    for options, name in (({"quantize": "fp8_static"}, "static"), ({}, "plain")):
        delivery.run(delivery.plan(delivery.open(hf), "hf", **options), tmp_path / f"{name} again", workers=1)
        expected, found = fp8_rules.tensors_of(tmp_path / name), fp8_rules.tensors_of(tmp_path / f"{name} again")
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key].float(), tensor.float()), key


def test_what_engines_fuse_shares_the_largest_scale(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    hf = from_state_dict(trtllm_case(CASE), tmp_path)
    tensors = fp8_rules.tensors_of(hf)
    stem = "model.layers.0.self_attn."
    tensors[f"{stem}k_proj.weight_scale"] *= 2  # other values, which is all the same here
    tensors[f"{stem}v_proj.input_scale"] *= 4
    save_file(tensors, hf / "model.safetensors", {"format": "pt"})
    delivery.run(delivery.plan(delivery.open(hf), "hf", quantize="fp8_static"), tmp_path / "shared", workers=1)
    found = fp8_rules.tensors_of(tmp_path / "shared")
    weight, activation = tensors[f"{stem}k_proj.weight_scale"], tensors[f"{stem}v_proj.input_scale"]
    for letter in "qkv":
        assert found[f"{stem}{letter}_proj.weight_scale"] == weight
        assert found[f"{stem}{letter}_proj.input_scale"] == activation
    value = tensors[f"{stem}q_proj.weight"].float() * tensors[f"{stem}q_proj.weight_scale"]
    assert torch.equal(found[f"{stem}q_proj.weight"].float(), (value / weight).to(fp8_rules.E4M3).float())


def test_without_scales_it_is_refused(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="fp8 training scales") as caught:
        delivery.plan(delivery.open(hf_model("llama")), "hf", quantize="fp8_static")
    assert "use -q fp8, which needs no such scales" in str(caught.value)
    # scales by row have no place for one of the input
    delivery.run(delivery.plan(delivery.open(hf_model("llama")), "hf", quantize="fp8"), tmp_path / "rows")
    with pytest.raises(PlanError, match="fp8 training scales"):
        delivery.plan(delivery.open(tmp_path / "rows"), "hf", quantize="fp8_static")


def test_rank_files_are_read_by_their_scales(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    """What TensorRT-LLM's own Python wrote comes to Hugging Face as the static folder made of the state dict itself."""
    folder = trtllm_case(CASE)
    hf = from_state_dict(folder, tmp_path)
    theirs = delivery.open(folder)
    delivery.run(delivery.plan(theirs, "hf", dtype="f32"), tmp_path / "plain", workers=1)
    wanted, found = fp8_rules.loaded(hf), fp8_rules.tensors_of(tmp_path / "plain")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    delivery.run(delivery.plan(theirs, "hf", quantize="fp8_static", fp8_kv_cache=True), tmp_path / "static", workers=1)
    assert (tmp_path / "static/model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    delivery.run(delivery.plan(theirs, "trtllm", tp=2, quantize="fp8", fp8_kv_cache=True), tmp_path / "trt", workers=1)
    assert rank_files(tmp_path / "trt") == rank_files(folder)


@pytest.mark.parametrize("ranks", [{"tp": 2}, {"tp": 2, "moe_ep": 2}, {"tp": 1, "pp": 2}])
def test_experts_of_rank_files_have_scales_of_their_own(
    ranks: dict[str, int], megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    state, args = global_state(megatron_checkpoint("mixtral-v019-dist-tp2ep2pp2-bf16"))
    modules, weights = scales_for(state)
    checkpoint = delivery.open(write_torch_dist(tmp_path / "root", state, args, scales=modules))
    delivery.run(delivery.plan(checkpoint, "trtllm", quantize="fp8", **ranks), tmp_path / "trt", workers=1)
    assert delivery.verify(tmp_path / "trt", checkpoint, workers=1).ok
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "hf", workers=1)
    given = fp8_rules.tensors_of(tmp_path / "hf")
    stem = "model.layers.0.block_sparse_moe.experts."
    found = fp8_rules.tensors_of_file(tmp_path / "trt/rank0.safetensors")
    scales, codes = (
        found["transformer.layers.0.mlp.fc.weights_scaling_factor"],
        found["transformer.layers.0.mlp.fc.weight"],
    )
    assert scales.shape == (codes.shape[0], 1)
    for expert in range(codes.shape[0]):
        assert scales[expert, 0] == weights[f"{stem}{expert}.w1.weight"][1]
        # the rank's rows of w3, then of w1
        rows = codes.shape[1] // 2
        halves = [given[f"{stem}{expert}.{word}.weight"][:rows].float() for word in ("w3", "w1")]
        assert torch.equal(codes[expert].float(), (torch.cat(halves) / scales[expert, 0]).to(fp8_rules.E4M3).float())
    largest = max(weights[f"{stem}{expert}.w1.weight"][0] for expert in range(codes.shape[0]))
    assert found["transformer.layers.0.mlp.fc.activation_scaling_factor"].tolist() == [largest]
    # and back: the same values as from the source directly
    delivery.run(delivery.plan(checkpoint, "hf", quantize="fp8_static"), tmp_path / "static", workers=1)
    delivery.run(delivery.plan(delivery.open(tmp_path / "trt"), "hf", dtype="f32"), tmp_path / "back", workers=1)
    wanted = fp8_rules.loaded(tmp_path / "static")
    back = fp8_rules.tensors_of(tmp_path / "back")
    assert all(torch.equal(back[name], tensor) for name, tensor in wanted.items())


def test_renamed_weights_keep_their_scales(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    folder = trtllm_case(CASE)
    hf = from_state_dict(folder, tmp_path)
    tensors = torch.load(tmp_path / "model.pt", weights_only=False)
    own = {name.replace("self_attention.linear_proj", "wo"): tensor for name, tensor in tensors.items()}
    torch.save(own, tmp_path / "own.pt")
    rename = {"decoder.layers.{layer}.wo.weight": "decoder.layers.{layer}.self_attention.linear_proj.weight"}
    checkpoint = delivery.open(tmp_path / "own.pt", config=tmp_path / "config.json", family="llama", rename=rename)
    delivery.run(delivery.plan(checkpoint, "hf", quantize="fp8_static", fp8_kv_cache=True), tmp_path / "out", workers=1)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def blob(root: Path, key: str) -> range:
    """Which bytes of the data file an object lies in."""
    with next(root.glob("iter_*/.metadata")).open("rb") as file:
        places = _Unpickler(file).load().storage_data
    (place,) = (place for index, place in places.items() if index.fqn == key)
    return range(place.offset, place.offset + place.length)


@pytest.mark.parametrize("broken", [b"", b"PK no zip", b"nothing"])
def test_a_damaged_object_harms_only_its_module(
    broken: bytes, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """torch_dist: the rest of the model is fp8, the plan says what could not be read; without fp8 nobody asks."""
    state, args = global_state(megatron_checkpoint("llama-v019-dist-tp2pp2-bf16"))
    modules, weights = scales_for(state)
    root = write_torch_dist(tmp_path / "root", state, args, scales=modules, states_as_tensors=False)
    (file,) = root.glob("iter_*/__0_0.distcp")
    data = bytearray(file.read_bytes())
    at = blob(root, "decoder.layers.mlp.linear_fc2._extra_state/shard_2_4")
    data[at.start : at.stop] = broken.ljust(at.stop - at.start, b"\0")
    file.write_bytes(data)
    checkpoint = delivery.open(root)
    assert not any("scales" in warning for warning in delivery.plan(checkpoint, "hf").warnings)
    plan = delivery.plan(checkpoint, "hf", quantize="fp8_static")
    assert any("linear_fc2._extra_state/shard_2_4" in warning for warning in plan.warnings)
    kept = {tensor.name for tensor in plan.tensors if tensor.dtype == "float8_e4m3fn"}
    assert kept == weights.keys() - {"model.layers.2.mlp.down_proj.weight"}
