"""Weights of the recorded cases, made from a seed with integers of PCG64 alone: the same bytes with every numpy.

A tensor's values depend on the seed, its name and its kind. They are normal enough (the sum of four uniform integers)
and no two tensors share a row, so a tensor that is forgotten, scaled or in another order changes the logits.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
DTYPES: Mapping[str, Any] = {
    "F32": np.float32, "I64": np.int64, "I8": np.int8, "U8": np.uint8, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
# kind -> (mean, standard deviation); a matrix has the deviation 1 / sqrt(last axis)
NORMAL: Mapping[str, tuple[float, float]] = {
    "around one": (1.0, 0.2),  # norms, D, dt_bias, scales of routers
    "around zero": (0.0, 0.2),  # biases, sinks, and norms that are stored less 1
    "around a quarter": (0.25, 0.05),  # norms of queries where the attention has no scale of its own
}


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint: dtype as safetensors names it; kind says how its values are made, see `values`.

    constant  the values themselves, of the kind "constant"
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    constant: tuple[int, ...] = ()


def values(tensor: Stored, seed: int) -> Values:
    """The values of `tensor`, in its dtype and shape. ValueError for an unknown kind."""
    raw = np.random.PCG64([seed, zlib.crc32(tensor.name.encode())]).random_raw
    shape, size = tensor.shape, int(np.prod(tensor.shape))
    dtype = DTYPES[tensor.dtype]
    if tensor.kind == "constant":
        return np.array(tensor.constant, dtype).reshape(shape)
    bits = np.asarray(raw(size), np.uint64).reshape(shape)
    if tensor.kind == "matrix":
        return (_normal(bits) * max(shape[-1], 8) ** -0.5).astype(dtype)
    if tensor.kind in NORMAL:
        mean, deviation = NORMAL[tensor.kind]
        return (mean + deviation * _normal(bits)).astype(dtype)
    if tensor.kind == "decay":  # A_log of state-space layers: 0 to 1.5
        return (_uniform(bits) * 1.5).astype(dtype)
    if tensor.kind == "scale":  # 0.6 to 1
        return (0.6 + 0.4 * _uniform(bits)).astype(dtype)
    if tensor.kind == "sign":  # of ternary projections: one size, two signs
        return np.where(bits >> np.uint64(63), 1.0, -1.0).astype(dtype) * dtype(0.7 * shape[-1] ** -0.5)
    if tensor.kind == "bytes":
        return (bits >> np.uint64(56)).astype(np.uint8).view(dtype)
    if tensor.kind == "exponents":  # E8M0 of 2**-5 and 2**-4
        return (122 + (bits >> np.uint64(63))).astype(np.uint8).view(dtype)
    if tensor.kind.startswith("choice of "):  # rows of different numbers below a count
        count = int(tensor.kind.removeprefix("choice of "))
        order = np.asarray(raw(shape[0] * count), np.uint64).reshape(shape[0], count).argsort(axis=1, kind="stable")
        return order[:, : shape[1]].astype(dtype)
    raise ValueError(f"tensor {tensor.name}: unknown kind {tensor.kind!r}")


def write_safetensors(path: Path, tensors: Mapping[str, Values]) -> None:
    """A safetensors file in the order of `tensors`, with the metadata that transformers writes."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        end = position + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def read_safetensors(path: Path) -> dict[str, Values]:
    """Every tensor of a safetensors file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(raw[start + at[0] : start + at[1]], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        for at in [entry["data_offsets"]]
    }


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """0 to 1, exact in float64."""
    return (bits >> np.uint64(32)).astype(np.float64) / 2**32


def _normal(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Mean 0, variance 1: the sum of the four 16-bit integers of each."""
    quarters = [((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4)]
    return (sum(quarters[1:], quarters[0]) - 2 * 65535) * (3**0.5 / 65536)
