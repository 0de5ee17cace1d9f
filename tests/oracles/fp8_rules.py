"""FP8 folders by the rules of ModelOpt and of the loaders, in torch. Nothing here knows crossdock.

ModelOpt: scale = largest of the row / 448, (weight / scale) cast to float8_e4m3fn, both in float32. Loaders: weight =
code * scale. In GPT-2's folders matrices are [in, out], so an output's scale is of a column.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

E4M3 = torch.float8_e4m3fn


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, of all shards."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def tensors_of_file(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor of one file."""
    return load_file(file)  # type: ignore[no-any-return]


def quantised(weight: torch.Tensor, *, columns: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix by row, or by column; a row of zeros has the scale 1."""
    wide = weight.float()
    largest = wide.abs().amax(0 if columns else 1)
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / 448)
    return (wide / scale.unsqueeze(0 if columns else 1)).to(E4M3), scale


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor as a loader computes with it: fp8 multiplied by its scales, in float32."""
    tensors = tensors_of(folder)
    columns = json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(("_scale", "_scale_inv")):
            continue
        if tensor.dtype == E4M3:
            scale = tensors[f"{name}_scale"]
            tensor = tensor.float() * (scale if scale.dim() == 0 else scale.unsqueeze(0 if columns else 1))
        out[name] = tensor.float()
    return out


def without_fp8(folder: Path, out: Path) -> Path:
    """The folder as a plain float32 one, which transformers loads."""
    out.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in loaded(folder).items()}, out / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32", "torch_dtype": "float32"}))
    if (folder / "generation_config.json").exists():
        shutil.copy(folder / "generation_config.json", out)
    return out
