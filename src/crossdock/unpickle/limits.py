"""How much one pickle may ask for. Everything above is refused before it is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.errors import FormatError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one pickle may ask for. Memory stays below about 100 bytes per opcode plus the pickle's own size.

    bytes        size of the pickle
    opcodes      opcodes executed
    stack        values on one level of the stack (elements of one tuple, nesting without marks)
    marks        nesting of marks
    tuple_nest   tuples directly inside tuples
    text         bytes of one string
    integer      bytes of one integer
    tuple_keys   dict keys that are tuples
    """

    bytes: int = 1 << 28
    opcodes: int = 2_500_000
    stack: int = 100_000
    marks: int = 512
    tuple_nest: int = 16
    text: int = 1 << 24
    integer: int = 1024
    tuple_keys: int = 4096


class TruncatedPickleError(FormatError):
    """The bytes end before the pickle does."""
