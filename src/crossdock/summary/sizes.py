"""Parameters and bytes of a checkpoint, as stored and as each target would store it."""

from __future__ import annotations

from math import prod

from crossdock.codecs.codec import encoded_size
from crossdock.codecs.registry import get
from crossdock.formats.stored import StoredTensor
from crossdock.planning.estimate import parameters, target_sizes

__all__ = ["parameters", "stored_bytes", "target_sizes"]


def stored_bytes(tensor: StoredTensor) -> int:
    """Bytes of a stored tensor's data, without the scales beside it."""
    return encoded_size(get(tensor.dtype), prod(tensor.shape))
