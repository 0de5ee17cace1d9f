"""FP8 folders as others write them, read by their scales: each form made here in torch, and what is wrong with some."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from crossdock import delivery
from crossdock.errors import ConfigError, CrossdockError, FormatError
from oracles import fp8_rules

Form = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # codes, scales, what they stand for
LINEAR = ("_proj.weight",)


def by_tensor(shape: tuple[int, ...]) -> Form:
    def form(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = (weight.float().abs().max() / 448).reshape(shape)
        codes = (weight.float() / scale).to(fp8_rules.E4M3).reshape(weight.shape)
        return codes, scale, codes.float() * scale

    return form


def by_row(dtype: torch.dtype) -> Form:
    def form(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = (weight.float().abs().amax(1, keepdim=True) / 448).to(dtype)
        codes = (weight.float() / scale.float()).to(fp8_rules.E4M3)
        return codes, scale, codes.float() * scale.float()

    return form


def by_block(rows: int, columns: int, *, four: bool = False) -> Form:
    """Blocks, of which the last may be smaller; `four`: the scales as ModelOpt has them, [rows, 1, columns, 1]."""

    def form(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide, codes = weight.float(), torch.empty(weight.shape, dtype=fp8_rules.E4M3)
        back = torch.empty(weight.shape)
        scales = torch.empty(-(-wide.shape[0] // rows), -(-wide.shape[1] // columns))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                box = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scales[i, j] = wide[box].abs().max() / 448
                codes[box] = (wide[box] / scales[i, j]).to(fp8_rules.E4M3)
                back[box] = codes[box].float() * scales[i, j]
        return codes, scales[:, None, :, None].contiguous() if four else scales, back

    return form


MODELOPT = {"quant_method": "modelopt", "producer": {"name": "modelopt", "version": "0.29.0"}}
FORMS: dict[str, tuple[Form, dict[str, Any], str]] = {
    "modelopt, by tensor": (by_tensor(()), MODELOPT | {"quant_algo": "FP8"}, "_scale"),
    "modelopt, blocks": (by_block(128, 128, four=True), MODELOPT | {"quant_algo": "fp8_pb_wo"}, "_scale"),
    "deepseek": (by_block(48, 40), {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 40]}, "_scale_inv"),
    "transformers, by tensor": (by_tensor(()), {"quant_method": "fp8", "weight_block_size": None}, "_scale_inv"),
    "compressed-tensors": (
        by_row(torch.bfloat16), {"quant_method": "compressed-tensors", "format": "float-quantized"}, "_scale"
    ),
    "compressed-tensors, by tensor": (
        by_tensor((1,)), {"quant_method": "compressed-tensors", "format": "float-quantized"}, "_scale"
    ),
    "fbgemm": (by_row(torch.float32), {"quant_method": "fbgemm_fp8"}, "_scale"),
}  # fmt: skip


def written(
    source: Path, folder: Path, form: Form, said: dict[str, Any], end: str, *, apart: bool = False
) -> dict[str, torch.Tensor]:
    """An FP8 folder made of a plain one, and what its tensors stand for. apart: scales in a shard of their own."""
    folder.mkdir()
    tensors, scales, back = {}, {}, {}
    for name, tensor in fp8_rules.tensors_of(source).items():
        back[name] = tensors[name] = tensor
        if name.endswith(LINEAR):
            tensors[name], scales[f"{name}{end}"], back[name] = form(tensor)
    if apart:
        parts = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": scales}
        index = {name: file for file, held in parts.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        parts = {"model.safetensors": tensors | scales}
    for file, held in parts.items():
        save_file(held, folder / file, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return back


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_every_form_is_read(kind: str, apart: bool, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    back = written(hf_model("llama"), tmp_path / "fp8", *FORMS[kind], apart=apart)
    checkpoint = delivery.open(tmp_path / "fp8")
    delivery.run(delivery.plan(checkpoint, "hf", dtype="f32"), tmp_path / "plain", memory=1 << 20, workers=1)
    found = fp8_rules.tensors_of(tmp_path / "plain")
    assert found.keys() == back.keys()
    for name, tensor in back.items():
        assert torch.equal(found[name], tensor.float()), name
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    assert all(tensor.same for tensor in delivery.diff(tmp_path / "fp8", tmp_path / "plain").tensors)
    # transposed and permuted on the way, too
    delivery.run(delivery.plan(checkpoint, "gguf", dtype="f32"), tmp_path / "model.gguf", memory=1 << 20, workers=1)
    assert all(tensor.same for tensor in delivery.diff(tmp_path / "model.gguf", tmp_path / "plain").tensors)


def test_hf_quant_config_alone_is_enough(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Older ModelOpt says nothing in config.json."""
    form, said, end = FORMS["modelopt, by tensor"]
    back = written(hf_model("llama"), tmp_path / "fp8", form, {}, end)
    whole = {"producer": said["producer"], "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "fp8/hf_quant_config.json").write_text(json.dumps(whole))
    delivery.run(delivery.plan(delivery.open(tmp_path / "fp8"), "hf", dtype="f32"), tmp_path / "plain")
    found = fp8_rules.tensors_of(tmp_path / "plain")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in back.items())


def test_gpt2_has_its_scales_by_column(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Square matrices do not tell; the others of the folder do."""
    delivery.run(delivery.plan(delivery.open(hf_model("gpt2")), "hf", quantize="fp8"), tmp_path / "fp8")
    square = "transformer.h.1.attn.c_proj.weight"
    tensors = fp8_rules.tensors_of(tmp_path / "fp8")
    assert tensors[square].shape == (64, 64)
    delivery.run(delivery.plan(delivery.open(tmp_path / "fp8"), "hf"), tmp_path / "plain")
    found = fp8_rules.tensors_of(tmp_path / "plain")[square]
    assert torch.equal(found, tensors[square].float() * tensors[f"{square}_scale"][None, :])


NAME = "model.layers.1.self_attn.k_proj.weight_scale"


def without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[NAME]


def shaped(*shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NAME] = torch.ones(shape)

    return change


def valued(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NAME][3] = value

    return change


def typed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = tensors[NAME].to(torch.int32)


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "missing": (without, "have no scales"),
    "too few": (shaped(15), "unsupported form of scales"),
    "transposed": (shaped(1, 16), "unsupported form of scales"),
    "empty": (shaped(0), "unsupported form of scales"),
    "integers": (typed, "unsupported form of scales"),
    "NaN": (valued(float("nan")), "not positive numbers"),
    "infinite": (valued(float("inf")), "not positive numbers"),
    "zero": (valued(0.0), "not positive numbers"),
    "negative": (valued(-1.0), "not positive numbers"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_scales_that_are_wrong_are_refused(what: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    change, said = BROKEN[what]
    written(hf_model("llama"), tmp_path / "fp8", *FORMS["fbgemm"])
    tensors = fp8_rules.tensors_of(tmp_path / "fp8")
    change(tensors)
    save_file(tensors, tmp_path / "fp8/model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=said) as caught:
        delivery.run(delivery.plan(delivery.open(tmp_path / "fp8"), "hf", dtype="f32"), tmp_path / "plain")
    assert "model.layers.1.self_attn.k_proj.weight" in str(caught.value)
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    "said",
    [{"quant_method": "gptq", "bits": 4}, MODELOPT | {"quant_algo": "NVFP4"}, {"quant_method": "fp8", "fmt": "e5m2"},
     {"quant_method": "compressed-tensors", "format": "pack-quantized"}, "fp8", ["modelopt"], {"quant_method": None}],
)  # fmt: skip
def test_other_quantisations_are_refused_by_name(said: Any, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(hf_model("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    with pytest.raises(ConfigError, match="the weights are quantised"):
        delivery.open(folder)


@pytest.mark.parametrize("size", [[0, 128], [128], "128", [True, 128], [-1, 128]])
def test_sizes_of_blocks_are_checked(size: Any, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    form, said, end = FORMS["deepseek"]
    written(hf_model("llama"), tmp_path / "fp8", form, said | {"weight_block_size": size}, end)
    with pytest.raises(CrossdockError, match="not a block size"):
        delivery.open(tmp_path / "fp8")
