"""One file of weights, safetensors or torch.save: its tensors and where their bytes are. Knows no names' meaning.

Reads headers only; torch files go through the safe pickle machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.formats import safetensors
from crossdock.formats.stored import Extent, StoredTensor

if TYPE_CHECKING:
    from crossdock.unpickle import TensorRef


def tensors_in(file: Path, number: int) -> Iterator[StoredTensor]:
    """The tensors of `file`, which is file `number` of its source, in the file's order.

    A torch file holds them in nested dicts; names are the keys joined by dots.
    Raises FormatError, UnsafePickleError, NotACheckpointError.
    """
    if file.suffix == ".safetensors":
        for name, tensor in safetensors.read_header(file).tensors.items():
            extent = Extent(number, tensor.begin, tensor.end - tensor.begin, (0,) * len(tensor.shape), tensor.shape)
            yield StoredTensor(name, tensor.shape, tensor.codec, (extent,))
        return
    from crossdock.torchfile.reader import open_torch, state_tensors

    root = open_torch(file, where=str(file)).root
    for name, ref in state_tensors(root, where=str(file)):
        yield stored(name, ref, number)


def stored(name: str, ref: TensorRef, number: int) -> StoredTensor:
    """A torch tensor as a stored one of file `number`."""
    strides = None if ref.contiguous else ref.strides
    used = 1 + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides, strict=True))
    nbytes = used * ref.itemsize if ref.elements else 0
    extent = Extent(number, ref.offset, nbytes, (0,) * len(ref.shape), ref.shape, strides)
    return StoredTensor(name, ref.shape, ref.dtype, (extent,) if ref.elements else ())
