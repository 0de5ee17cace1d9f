"""What the tests of Megatron sources share: names of real checkpoints, copies to damage, values gathered by numpy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crossdock import torchfile
from crossdock.formats.stored import Source
from crossdock.io.files import reading

Checkpoint = Callable[[str], Path]
LLAMA, MIXTRAL, VPP, REAL = (
    "llama-v019-dist-tp2pp2-bf16",
    "mixtral-tesynth-legacy-tp2ep2pp2-fp32",
    "llama-v016-legacy-tp2pp2vpp2-fp32",
    "llama-realrun-dist-tp2pp2-bf16",
)


def copied(megatron_checkpoint: Checkpoint, name: str, to: Path) -> Path:
    shutil.copytree(megatron_checkpoint(name), to)
    return to


def read_array(source: Source, part: str, name: str) -> np.ndarray[Any, Any]:
    """One float32 tensor, gathered from its extents by numpy."""
    stored = source.tensors[part, name]
    assert stored.dtype == "float32"
    out = np.full(stored.shape, np.nan, np.float32)
    for extent in stored.extents:
        path = source.files[extent.file].path
        offset, shape, strides = extent.offset, extent.shape, extent.strides
        if extent.wrapping == "torch_zip":
            with reading(path) as fd:
                ref = torchfile.locate_single(fd, extent.offset, extent.nbytes, str(path))
            offset, shape, strides = ref.offset, ref.shape, ref.strides
        data = np.fromfile(path, np.uint8)[
            offset : offset + (extent.nbytes if extent.wrapping == "raw" else ref.nbytes)
        ]
        values = data.view(np.float32)
        if strides is None:
            values = values.reshape(shape)
        else:
            values = np.lib.stride_tricks.as_strided(values, shape, [s * 4 for s in strides])
        out[tuple(slice(o, o + n) for o, n in zip(extent.origin, extent.shape, strict=True))] = values
    return out
