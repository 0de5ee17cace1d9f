"""Activation statistics: how often each FFN neuron of each layer was active, one `activation_{layer}.pt` a layer.

The files are pickles from strangers: they are read by crossdock's own reader, without torch, and nothing in them is
executed. Counts become integers, exactly: what is summed and compared later never rounds. File form from PowerInfer at
d3ebd7c (powerinfer-py/powerinfer/solver.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import CrossdockError, FormatError, InputError, NotACheckpointError, Problem
from crossdock.io.files import read_exact, reading
from crossdock.torchfile import open_torch
from crossdock.unpickle.values import TensorRef
from crossdock_powerinfer.rank import Counts

NAME: Final = re.compile(r"activation_(0|[1-9]\d{0,5})\.pt")
MAX_WIDTH: Final = 1 << 24  # neurons in a layer; the widest models have some 100,000
ROOM: Final = 62  # bits that all counts together may take
DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "uint8": "u1",
        "int8": "<i1",
        "int16": "<i2",
        "int32": "<i4",
        "int64": "<i8",
        "float16": "<f2",
        "float32": "<f4",
        "float64": "<f8",
    }
)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of every layer, in units of 2**-scale activations.

    counts  per layer [n_ff], not negative: int32 if that holds every count, else int64, which holds the sum of all
    scale   0 for whole counts; more where the files hold fractions
    exact   False when fractions had to be rounded to 2**-scale
    """

    counts: tuple[Counts, ...]
    scale: int = 0
    exact: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """n_ff of each layer."""
        return tuple(len(layer) for layer in self.counts)

    @property
    def total(self) -> int:
        """All activations, in units of 2**-scale."""
        return sum(int(layer.sum()) for layer in self.counts)

    def amount(self, units: int) -> float:
        """Units as the number of activations that the files count in."""
        return units / (1 << self.scale)


def read_statistics(folder: Path) -> Statistics:
    """All layers of a folder, in the order of their numbers. Other files in it are not layers.

    Raises NotACheckpointError (no folder, no layers), UnsafePickleError, FormatError: gaps in the numbering, not one
    dimension, NaN, infinite or negative counts. Problems of all files are collected.
    """
    if not folder.is_dir():
        raise NotACheckpointError("the folder of activations does not exist", where=str(folder))
    numbers = sorted(int(match[1]) for entry in folder.iterdir() if (match := NAME.fullmatch(entry.name)))
    if not numbers:
        raise NotACheckpointError(
            "no activation statistics found",
            where=str(folder),
            expected="activation_0.pt, activation_1.pt, ...",
        )
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers)) if numbers[-1] < 1 << 16 else [0]
    if missing:
        raise FormatError(
            "layers are missing",
            where=str(folder),
            expected=f"activation_0.pt to activation_{numbers[-1]}.pt",
            got=f"no activation_{missing[0]}.pt" + (f" and {len(missing) - 1} more gaps" if missing[1:] else ""),
        )
    raw: list[NDArray[np.generic]] = []
    errors: list[CrossdockError] = []
    for number in numbers:
        try:
            raw.append(_read(folder / f"activation_{number}.pt"))
        except InputError as error:
            errors.append(error)
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        raise type(errors[0])(problems)
    return of_arrays(raw, str(folder))


def of_arrays(layers: list[NDArray[np.generic]], where: str = "") -> Statistics:
    """Numbers of any kind as exact integers. Raises FormatError when even int64 cannot hold their sum."""
    if all(np.all(layer == np.floor(layer)) for layer in layers if layer.dtype.kind == "f"):
        scale, exact = 0, True
    else:
        scale, exact = _scale(layers)
    total = sum(float(layer.sum(dtype=np.float64)) for layer in layers)
    if total * 2.0**scale >= 2.0**ROOM:
        raise FormatError("the counts are larger than int64 can sum", where=where, got=f"{total:.3g} activations")
    narrow = max(float(layer.max()) for layer in layers) * 2.0**scale < 2.0**31 - 1
    out: list[Counts] = []
    for layer in layers:
        if layer.dtype.kind == "f":
            whole = np.rint(np.ldexp(layer.astype(np.float64), scale)).astype(np.int64)
        else:
            whole = layer.astype(np.int64) << scale
        out.append(whole.astype(np.int32) if narrow else whole)
    return Statistics(tuple(out), scale, exact)


def _scale(layers: list[NDArray[np.generic]]) -> tuple[int, bool]:
    """The power of two by which all fractions become whole, or the largest for which the sum still fits."""
    total = sum(float(layer.sum(dtype=np.float64)) for layer in layers)
    most = ROOM - 1 - max(int(np.frexp(total)[1]), 0)
    needed = 0
    for layer in layers:
        if layer.dtype.kind == "f":
            values = layer[layer != 0].astype(np.float64)
            mantissa, exponent = np.frexp(values)
            whole = np.ldexp(mantissa, 53).astype(np.int64)
            zeros = np.frexp((whole & -whole).astype(np.float64))[1] - 1  # trailing zero bits
            needed = max(needed, int((53 - zeros - exponent).max(initial=0)))
    return min(needed, most), needed <= most


def _read(path: Path) -> NDArray[np.generic]:
    """One file's counts, checked. Raises FormatError, UnsafePickleError."""
    with reading(path) as fd:
        root = open_torch(fd, where=str(path)).root
        if type(root) is not TensorRef:
            raise FormatError("the file does not hold one tensor", where=str(path), got=type(root).__name__)
        if len(root.shape) != 1 or not 1 <= root.elements <= MAX_WIDTH:
            raise FormatError(
                "activation counts are one row of numbers",
                where=str(path),
                expected="[n_ff]",
                got=str(list(root.shape)),
            )
        if root.dtype not in DTYPES:
            raise FormatError(
                "numbers of this type are not counts", where=str(path), expected=", ".join(DTYPES), got=root.dtype
            )
        stride = root.strides[0]
        if stride < 1 and root.elements > 1:
            raise FormatError("one count stands for many neurons", where=str(path), got=f"a stride of {stride}")
        span = (root.elements - 1) * stride + 1 if root.elements > 1 else 1
        data = read_exact(fd, root.offset, span * root.itemsize, str(path))
    values: NDArray[np.generic] = np.frombuffer(data, DTYPES[root.dtype])[:: max(stride, 1)]
    _check(path, values, root.dtype)
    return values


def _check(path: Path, values: NDArray[np.generic], dtype: str) -> None:
    problems = []
    if values.dtype.kind == "f":
        nan = int(np.isnan(values).sum())
        infinite = int(np.isinf(values).sum())
        if nan:
            problems.append(Problem(f"{nan:,} counts are NaN", str(path)))
        if infinite:
            cause = "counts above 65,504 overflow float16" if dtype == "float16" else ""
            fix = "count again, in int64" if cause else ""
            problems.append(Problem(f"{infinite:,} counts are infinite", str(path), cause=cause, fix=fix))
    negative = int(np.sum(np.less(values, 0)))
    if negative:
        problems.append(Problem(f"{negative:,} counts are negative", str(path)))
    if problems:
        raise FormatError(problems)
