"""Scales of fp8 training in a state dict's `_extra_state`: per module one of its input and one of its weight.

Three forms: an io.BytesIO with torch.save in it, bytes as a uint8 tensor with torch.save in it, or with a plain pickle
in it. All are read by the safe pickle machine; tensor data of the model is not. Facts: TransformerEngine
`pytorch/module/base.py` (get_extra_state), Megatron-LM d98e8a6 `megatron/core/export`: scale_inv_fwd[0] is the input's,
[1] the weight's; newer files have scale_fwd alone, its reciprocal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from crossdock.errors import CrossdockError, FormatError
from crossdock.formats import pickles
from crossdock.formats.files import read_exact, reading
from crossdock.formats.pickles import Instance, StorageRef, TensorRef
from crossdock.formats.stored import StoredTensor
from crossdock.formats.torchfile.reader import open_torch

NAME = "._extra_state"
LARGEST = 16 << 20  # bytes of one module's state, with the history of its maxima
DEEPEST = 64  # dots in a name
Scales = tuple[float, float]


def scales_of(states: Mapping[str, bytes], where: str) -> tuple[dict[str, Scales], list[str]]:
    """Weight name -> scale of the input, scale of the weight, as factors from fp8 to values; and what is wrong in
    states that cannot be read: a model is whole without them. Modules without scales are left out."""
    out: dict[str, Scales] = {}
    unreadable = []
    for name, data in states.items():
        try:
            numbers = _numbers(data, f"{where}: {name}") if data else None
        except CrossdockError as error:
            unreadable.append(error.problems[0].lines()[0])
            continue
        if numbers is not None:
            out[name.removesuffix(NAME) + ".weight"] = numbers
    return out, unreadable


def states(path: Path, tensors: Iterable[StoredTensor]) -> Iterator[tuple[str, bytes]]:
    """Every `_extra_state` of a file and its bytes. `tensors`: what the file holds as tensors, with extents in it."""
    with reading(path) as fd:
        for tensor in tensors:
            if tensor.name.endswith(NAME) and tensor.dtype == "uint8" and len(tensor.extents) == 1:
                extent = tensor.extents[0]
                if extent.nbytes <= LARGEST and extent.strides is None:
                    yield tensor.name, read_exact(fd, extent.offset, extent.nbytes, str(path))
    if path.suffix != ".safetensors":
        yield from _held(path)


def _held(path: Path) -> Iterator[tuple[str, bytes]]:
    """Those that a torch file holds as io.BytesIO."""
    root = open_torch(path, where=str(path)).root
    stack: list[tuple[str, object]] = [("", root)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict) and name.count(".") < DEEPEST:
            stack += [(f"{name}.{key}" if name else str(key), inner) for key, inner in value.items()]
        elif name.endswith(NAME) and type(value) is Instance and value.cls.name == "BytesIO":
            state = value.state if type(value.state) is tuple else value.args
            yield name, state[0] if state and type(state[0]) is bytes else b""


def _numbers(data: bytes, where: str) -> Scales | None:
    """The two scales in one state; None where the module keeps none."""
    with _File(data) as file:
        if data.startswith(b"PK") or data[:32].find(b"\x8a\x0a") >= 0:
            state: object = open_torch(file.fd, where=where).root
        else:
            state = pickles.load(data, where=where, more={("torch.storage", "_load_from_bytes"): file.storage})
        if not isinstance(state, dict):
            return None
        inverse = file.floats(state.get("scale_inv_fwd"))
        if not inverse:
            with np.errstate(divide="ignore"):
                inverse = [float(np.float32(1) / np.float32(scale)) for scale in file.floats(state.get("scale_fwd"))]
    if len(inverse) < 2:
        return None
    if not all(np.isfinite(number) and number > 0 for number in inverse[:2]):
        raise FormatError("scales that are no positive numbers", where=where, got=str(inverse[:2]))
    return inverse[0], inverse[1]


class _File:
    """Bytes as a file in memory, and behind them the storages that a plain pickle brings along."""

    def __init__(self, data: bytes) -> None:
        self.fd = os.memfd_create("extra_state")
        os.write(self.fd, data)
        self._end = len(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def storage(self, args: tuple[object, ...], charge: pickles.Charge) -> StorageRef:
        """`torch.storage._load_from_bytes`: a storage as torch.save writes it, read as data."""
        (data,) = args
        if type(data) is not bytes:
            raise ValueError("a storage that is no bytes")
        charge(len(data))
        start = self._end
        self._end += os.pwrite(self.fd, data, start)
        try:
            root = open_torch(self.fd, start, len(data), where="storage").root
        except CrossdockError as error:
            raise ValueError(error.problems[0].what) from None
        if type(root) is not StorageRef:
            raise ValueError("bytes that hold no storage")
        return root

    def floats(self, value: object) -> list[float]:
        """The numbers of a small float32 tensor; none for anything else."""
        if type(value) is not TensorRef or value.dtype != "float32" or not value.contiguous or value.elements > 4096:
            return []
        data = read_exact(self.fd, value.offset, 4 * value.elements, "extra_state")
        return [float(number) for number in np.frombuffer(data, np.float32)]
