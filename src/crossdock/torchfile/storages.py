"""The persistent ids by which torch's pickles name storages.

Reads ids only, no bytes. Facts from torch 2.13 (`torch/serialization.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from crossdock import unpickle
from crossdock.unpickle import ITEM_SIZES


class StorageId(NamedTuple):
    """A storage as a pickle names it: key, codec name, bytes, and the (first byte, bytes) of a view."""

    key: str
    dtype: str
    nbytes: int
    view: tuple[int, int] | None


def storage_id(pid: object) -> StorageId:
    """Read ("storage", class, key, location, elements[, None or (view key, first, elements)]).

    Raises ValueError with a sentence for anything else.
    """
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ValueError("a persistent id that is not a torch storage")
    dtype = unpickle.storage_dtype(pid[1])
    if dtype is None:
        raise ValueError("a storage of a type that is not known")
    itemsize = ITEM_SIZES[dtype]
    if type(pid[2]) is not str or not _is_count(pid[4]):
        raise ValueError("a storage without a key or a number of elements")
    nbytes = pid[4] * itemsize
    view = None
    if len(pid) == 6 and pid[5] is not None:
        view_metadata = pid[5]
        if (
            type(view_metadata) is not tuple
            or len(view_metadata) != 3
            or not _is_count(view_metadata[1])
            or not _is_count(view_metadata[2])
        ):
            raise ValueError("a view of a storage that is not understood")
        view = (view_metadata[1] * itemsize, view_metadata[2] * itemsize)
        if sum(view) > nbytes:
            raise ValueError("a view that reaches outside its storage")
    return StorageId(pid[2], dtype, nbytes, view)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 60
