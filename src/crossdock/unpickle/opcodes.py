"""All pickle opcodes: their names and how their arguments are stored.

The machine executes only some of them; the scanner walks over all of them. Facts from CPython 3.11
`Lib/pickletools.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# opcode -> (name, argument); argument: "" none, "N" that many bytes, "lN" a length of N bytes and then that
# many bytes, "line" text up to a newline, "lines" two of them
_TABLE: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "I": ("INT", "line"),
        "J": ("BININT", "4"),
        "K": ("BININT1", "1"),
        "M": ("BININT2", "2"),
        "L": ("LONG", "line"),
        "\x8a": ("LONG1", "l1"),
        "\x8b": ("LONG4", "l4"),
        "S": ("STRING", "line"),
        "T": ("BINSTRING", "l4"),
        "U": ("SHORT_BINSTRING", "l1"),
        "B": ("BINBYTES", "l4"),
        "C": ("SHORT_BINBYTES", "l1"),
        "\x8e": ("BINBYTES8", "l8"),
        "\x96": ("BYTEARRAY8", "l8"),
        "\x97": ("NEXT_BUFFER", ""),
        "\x98": ("READONLY_BUFFER", ""),
        "N": ("NONE", ""),
        "\x88": ("NEWTRUE", ""),
        "\x89": ("NEWFALSE", ""),
        "V": ("UNICODE", "line"),
        "\x8c": ("SHORT_BINUNICODE", "l1"),
        "X": ("BINUNICODE", "l4"),
        "\x8d": ("BINUNICODE8", "l8"),
        "F": ("FLOAT", "line"),
        "G": ("BINFLOAT", "8"),
        "]": ("EMPTY_LIST", ""),
        "a": ("APPEND", ""),
        "e": ("APPENDS", ""),
        "l": ("LIST", ""),
        ")": ("EMPTY_TUPLE", ""),
        "t": ("TUPLE", ""),
        "\x85": ("TUPLE1", ""),
        "\x86": ("TUPLE2", ""),
        "\x87": ("TUPLE3", ""),
        "}": ("EMPTY_DICT", ""),
        "d": ("DICT", ""),
        "s": ("SETITEM", ""),
        "u": ("SETITEMS", ""),
        "\x8f": ("EMPTY_SET", ""),
        "\x90": ("ADDITEMS", ""),
        "\x91": ("FROZENSET", ""),
        "0": ("POP", ""),
        "2": ("DUP", ""),
        "(": ("MARK", ""),
        "1": ("POP_MARK", ""),
        "g": ("GET", "line"),
        "h": ("BINGET", "1"),
        "j": ("LONG_BINGET", "4"),
        "p": ("PUT", "line"),
        "q": ("BINPUT", "1"),
        "r": ("LONG_BINPUT", "4"),
        "\x94": ("MEMOIZE", ""),
        "\x82": ("EXT1", "1"),
        "\x83": ("EXT2", "2"),
        "\x84": ("EXT4", "4"),
        "c": ("GLOBAL", "lines"),
        "\x93": ("STACK_GLOBAL", ""),
        "R": ("REDUCE", ""),
        "b": ("BUILD", ""),
        "i": ("INST", "lines"),
        "o": ("OBJ", ""),
        "\x81": ("NEWOBJ", ""),
        "\x92": ("NEWOBJ_EX", ""),
        "\x80": ("PROTO", "1"),
        ".": ("STOP", ""),
        "\x95": ("FRAME", "8"),
        "P": ("PERSID", "line"),
        "Q": ("BINPERSID", ""),
    }
)

NAMES: Final[Mapping[int, str]] = MappingProxyType({ord(op): name for op, (name, _) in _TABLE.items()})
ARGUMENTS: Final[Mapping[int, str]] = MappingProxyType({ord(op): argument for op, (_, argument) in _TABLE.items()})
