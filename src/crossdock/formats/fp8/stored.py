"""Stored weights put together with the scales stored beside them, and single scales read. Knows no format's names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.scale_blocks import ScaleBlocks, checked
from crossdock.errors import FormatError
from crossdock.formats.stored import Source, StoredScales, StoredTensor
from crossdock.io.files import read_exact, reading

_DTYPES = ("float32", "bfloat16", "float16")


def scaled(tensor: StoredTensor, scale: StoredTensor, scale_blocks: ScaleBlocks | None, expected: str) -> StoredTensor:
    """`tensor` with the scales of `scale_blocks` from `scale`. Raises FormatError where they have no known form."""
    plain = len(tensor.extents) == len(scale.extents) == 1
    plain = plain and all(e.strides is None and e.wrapping == "raw" for e in (*tensor.extents, *scale.extents))
    if scale_blocks is None or not plain or scale.dtype not in _DTYPES:
        raise FormatError(
            "unsupported form of scales", where=scale.name, expected=expected,
            got=f"{scale.dtype} {list(scale.shape)}",
        )  # fmt: skip
    at = scale.extents[0]
    return replace(tensor, scaling=StoredScales(scale.name, scale.dtype, at.file, at.offset, scale_blocks))


def numbers(source: Source, tensor: StoredTensor) -> list[float]:
    """The values of a small stored tensor, all of them scales. Raises FormatError for what is no positive number."""
    codec, extent = codecs.get(tensor.dtype), tensor.extents[0]
    path = source.files[extent.file].path
    out = np.empty(extent.nbytes // codec.block_bytes, np.float32)
    with reading(path) as fd:
        raw = read_exact(fd, extent.offset, encoded_size(codec, out.size), str(path))
    codec.decode(np.frombuffer(raw, np.uint8), out)
    return [float(number) for number in checked(out, f"{tensor.name} in {path}")]
