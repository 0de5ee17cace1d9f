"""The protocol buffers wire format, just enough to walk and to write a message. Knows no schema.

Every length is checked against the bytes that are there before it is believed; groups (wire types 3 and 4),
which nothing writes any more, are refused. Format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | memoryview


class WireError(ValueError):
    """The bytes are not a message."""


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """(field number, wire type, value) of each field. Fixed-size and length-delimited values are views.

    Raises WireError at the first byte that cannot be.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise WireError(f"wire type {wire} of field {number} at byte {at}")
        if size > end - at:
            raise WireError(f"field {number} at byte {at} claims {size} bytes, {end - at} are left")
        yield number, wire, message[at : at + size]
        at += size


def field(number: int, value: int | float | bytes) -> bytes:
    """One field: whole numbers as varints, floats in 32 bits, bytes with their length."""
    if isinstance(value, float):
        return _number(number << 3 | FIXED32) + struct.pack("<f", value)
    if isinstance(value, int):
        return _number(number << 3 | VARINT) + _number(value)
    return _number(number << 3 | BYTES) + _number(len(value)) + value


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    if at < len(message) and message[at] < 0x80:  # most are one byte
        return message[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise WireError("ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise WireError(f"number longer than ten bytes at byte {at}")
