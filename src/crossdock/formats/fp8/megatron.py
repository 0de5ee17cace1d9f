"""Scales of fp8 training in Megatron's `_extra_state`: a module's, of its input and of its weight, or each expert's.

Three forms: an io.BytesIO with torch.save in it, bytes as a uint8 tensor with torch.save in it, or with a plain pickle
in it. All are read by the safe pickle machine; tensor data of the model is not. Facts: TransformerEngine
`pytorch/module/base.py` (get_extra_state), Megatron-LM d98e8a6 `megatron/core/export` and `extensions/
transformer_engine.py` (_split_extra_state): scale_inv_fwd has the inputs of all experts, then their weights, then their
outputs; newer files have scale_fwd alone, its reciprocal. torch_dist keeps a state per layer and expert.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crossdock import unpickle
from crossdock.errors import CrossdockError, FormatError
from crossdock.formats.dcp.data_files import Place
from crossdock.formats.safetensors import read_header
from crossdock.formats.stored import Pair, TrainingScales
from crossdock.io.files import read_exact, reading
from crossdock.io.system import file_in_memory
from crossdock.torchfile.reader import open_torch, read_object
from crossdock.unpickle import Instance, StorageRef, TensorRef

NAME = "._extra_state"
LARGEST = 16 << 20  # bytes of one module's state, with the history of its maxima
DEEPEST = 64  # dots in a name
_SHARD = re.compile(r"(.+)\._extra_state/shard_(\d{1,9}(?:\.\d{1,9})*)_(\d{1,9}(?:\.\d{1,9})*)\Z")
_HALVES = ("", "_w", "_v")  # of a gated module's weight
Index = tuple[int, ...]


class RankPlace(NamedTuple):
    """A model chunk of a rank file: the key it is under, and the parts that its weights and its experts belong to."""

    path: Path
    chunk: str
    part: str
    experts: str


class _Collected:
    """Scales as they are found, by (part, weight) and index, and what could not be read: a model is whole without."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], dict[Index, Pair]] = {}
        self.unreadable: list[str] = []

    def read(self, data: bytes, where: str) -> tuple[Pair, ...]:
        """The pairs in one state; none where the module keeps none, or they cannot be read."""
        try:
            return _pairs(data, where) if data else ()
        except CrossdockError as error:
            self.unreadable.append(error.problems[0].lines()[0])
            return ()

    def add(self, part: str, module: str, pairs: tuple[Pair, ...], index: Index = ()) -> None:
        """Those of a module: of its weight, or of the weights of its experts."""
        for half in _HALVES:
            if len(pairs) == 1:
                self.of.setdefault((part, f"{module}.weight{half}"), {})[index] = pairs[0]
        if len(pairs) > 1:
            for number, pair in enumerate(pairs):
                self.of.setdefault((part, f"{module}.weight{number}"), {})[index] = pair

    def all(self) -> TrainingScales:
        return TrainingScales(self.of, tuple(self.unreadable))


def of_state_dict(path: Path, prefix: str) -> TrainingScales:
    """Those of a whole model in one file, whose names all begin with `prefix`."""
    found = _Collected()
    for name, data in _safetensors(path) if path.suffix == ".safetensors" else _states(path, open_torch(path).root):
        if name.startswith(prefix):
            module = name.removeprefix(prefix).removesuffix(NAME)
            found.add("", module, found.read(data, f"{path}: {name}"))
    return found.all()


def of_ranks(places: tuple[RankPlace, ...]) -> TrainingScales:
    """Those of rank files. Each rank has its own; where a tensor is put together, the largest holds for all."""
    found = _Collected()
    for place in places:
        root = open_torch(place.path).root
        chunk = root.get(place.chunk) if isinstance(root, dict) else None
        for name, data in _states(place.path, chunk):
            module = name.removesuffix(NAME)
            while module.startswith(("module.", "model.")):
                module = module.partition(".")[2]
            part = place.experts if ".mlp.experts." in module else place.part
            found.add(part, module, found.read(data, f"{place.path}: {name}"))
    return found.all()


def of_objects(
    folder: Path, objects: tuple[tuple[str, Place], ...], prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> TrainingScales:
    """Those of a torch_dist folder, in objects called MODULE._extra_state/shard_INDEX_SIZES.

    shapes  of the weights by name, without `prefix`: the index is of their first dimensions, or of one entry alone
    """
    found = _Collected()
    for name, place in objects:
        shard = _SHARD.match(name.removeprefix(prefix))
        if shard is None:
            continue
        index, sizes = (tuple(map(int, text.split("."))) for text in (shard[2], shard[3]))
        shape = next((s for half in _HALVES if (s := shapes.get(f"{shard[1]}.weight{half}")) is not None), ())
        if shape[: len(sizes)] != sizes:
            if any(size != 1 for size in sizes):
                continue  # of a module without such a weight
            index = ()
        where = f"{folder / place.path}: {name}"
        with reading(folder / place.path) as fd:
            try:
                data = _blob(fd, place, where)
            except CrossdockError as error:
                found.unreadable.append(error.problems[0].lines()[0])
                continue
        found.add("", shard[1], found.read(data, where), index)
    return found.all()


def _blob(fd: int, place: Place, where: str) -> bytes:
    """The bytes of the one state in an object of torch_dist."""
    root = read_object(fd, place.offset, place.length, where)
    return _bytes_of(root[0], fd, where) if isinstance(root, list) and len(root) == 1 else b""


def _safetensors(path: Path) -> Iterator[tuple[str, bytes]]:
    with reading(path) as fd:
        for name, tensor in read_header(path).tensors.items():
            if name.endswith(NAME) and tensor.codec == "uint8" and tensor.end - tensor.begin <= LARGEST:
                yield name, read_exact(fd, tensor.begin, tensor.end - tensor.begin, str(path))


def _states(path: Path, root: object) -> Iterator[tuple[str, bytes]]:
    """Every `_extra_state` in nested dicts of a torch file."""
    stack: list[tuple[str, object]] = [("", root)]
    with reading(path) as fd:
        while stack:
            name, value = stack.pop()
            if isinstance(value, dict) and name.count(".") < DEEPEST:
                stack += [(f"{name}.{key}" if name else str(key), inner) for key, inner in value.items()]
            elif name.endswith(NAME):
                yield name, _bytes_of(value, fd, str(path))


def _bytes_of(value: object, fd: int, where: str) -> bytes:
    """A state's bytes: of a uint8 tensor, or of an io.BytesIO; none where there is neither."""
    if type(value) is TensorRef and value.dtype == "uint8" and value.contiguous and 0 < value.elements <= LARGEST:
        return read_exact(fd, value.offset, value.elements, where)
    if type(value) is Instance and value.cls.name == "BytesIO":
        state = value.state if type(value.state) is tuple else value.args
        return state[0] if state and type(state[0]) is bytes else b""
    return b""


def _pairs(data: bytes, where: str) -> tuple[Pair, ...]:
    """Scale of the input and of the weight, as factors from fp8 to values, of each product in one state."""
    with _File(data) as file:
        if data.startswith(b"PK") or data[:32].find(b"\x8a\x0a") >= 0:
            state: object = open_torch(file.fd, where=where).root
        else:
            state = unpickle.load(data, where=where, more={("torch.storage", "_load_from_bytes"): file.storage})
        if not isinstance(state, dict):
            return ()
        inverse = file.floats(state.get("scale_inv_fwd"))
        if not inverse:
            with np.errstate(divide="ignore"):
                inverse = [float(np.float32(1) / np.float32(scale)) for scale in file.floats(state.get("scale_fwd"))]
    if len(inverse) < 2:
        return ()
    variables = state.get("extra_fp8_variables")
    count = variables.get("num_gemms", 1) if isinstance(variables, dict) else 1
    if not isinstance(count, int) or count < 1 or len(inverse) < 2 * count:
        raise FormatError("not as many scales as products", where=where, expected=str(count), got=str(len(inverse)))
    pairs = tuple(zip(inverse[:count], inverse[count : 2 * count], strict=True))
    if not all(np.isfinite(number) and number > 0 for pair in pairs for number in pair):
        raise FormatError("scales that are not positive numbers", where=where, got=str(list(pairs[0])))
    return pairs


class _File:
    """Bytes as a file in memory, and behind them the storages that a plain pickle brings along."""

    def __init__(self, data: bytes) -> None:
        self.fd = file_in_memory("extra_state")
        os.write(self.fd, data)
        self._end = len(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def storage(self, args: tuple[object, ...], charge: unpickle.Charge) -> StorageRef:
        """`torch.storage._load_from_bytes`: a storage as torch.save writes it, read as data."""
        (data,) = args
        if type(data) is not bytes:
            raise ValueError("a storage that is not bytes")
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
