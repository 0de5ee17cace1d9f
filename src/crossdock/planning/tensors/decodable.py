"""Encodings that a format can name and crossdock cannot decode: refused by tensor and type before a plan is made."""

from __future__ import annotations

from collections.abc import Iterable

from crossdock.codecs import registry as codecs
from crossdock.errors import FormatError
from crossdock.formats.stored import StoredTensor


def demand_decodable(tensors: Iterable[StoredTensor], where: str) -> None:
    """Raise FormatError that names the types that are not decoded, how many tensors have them, and one of each."""
    known = frozenset(codecs.names())
    found: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.dtype not in known:
            found.setdefault(tensor.dtype, []).append(tensor.name)
    if not found:
        return
    listed = "; ".join(
        f"{kind.upper()}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for kind, names in sorted(found.items())
    )
    raise FormatError(
        f"tensors are stored as {', '.join(kind.upper() for kind in sorted(found))}, which crossdock cannot decode",
        where=where,
        expected="a float type, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a K-quant",
        got=listed,
        fix="pass the F16, BF16, Q8_0 or K-quant file of the model, or llama-quantize --allow-requantize it",
    )
