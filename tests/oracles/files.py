"""Tensors of Hugging Face folders and GGUF files, read by the formats' own libraries (safetensors,
gguf-py)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class GgufTensor:
    """type is ggml's name ("F32", "Q8_0"); shape in numpy order, of elements; raw the stored bytes."""

    type: str
    shape: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True)
class GgufFile:
    """keys: name -> (type, value), where an array's type is "ARRAY:STRING"; tensors in file order."""

    keys: dict[str, tuple[str, Any]]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Everything in a GGUF file, by gguf-py's reader."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys: dict[str, tuple[str, Any]] = {}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            keys[name] = (":".join(kind.name for kind in field.types), field.contents())
    tensors = {
        tensor.name: GgufTensor(
            tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape)), tensor.data.tobytes()
        )
        for tensor in reader.tensors
    }
    return GgufFile(keys, tensors)


def hf_state(folder: Path) -> dict[str, Array]:
    """All tensors of a Hugging Face folder as float32, by the safetensors library."""
    return {name: np.asarray(tensor.float().numpy(), np.float32) for name, tensor in _hf_tensors(folder).items()}


def hf_hashes(folder: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """name -> (dtype, shape, sha256 of the bytes) of every tensor of a Hugging Face folder."""
    import torch

    return {
        name: (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        )
        for name, tensor in _hf_tensors(folder).items()
    }


def _hf_tensors(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    state: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.offset_keys():
                assert name not in state, f"{name} is in two shards"
                state[name] = opened.get_tensor(name)
    return state
