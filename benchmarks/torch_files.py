"""Writes what torch writes, without torch: pickles that name classes never imported here, and torch.save
archives.

The byte layout follows files of torch 2.13 and megatron-core 0.19.2: a stored ZIP with data on multiples of
64, sizes in data descriptors, pickle protocol 2 for tensors and 4 for `.metadata`. For benchmarks only: it
reads nothing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Name:
    """A global that the pickle names: a class or function."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """`function(*arguments)` when loaded."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """An object of `cls` made without calling it, whose state is then set; no state at all when None."""

    cls: Name
    state: Any


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A persistent id, as torch.save uses for storages."""

    key: Any


class _Pickling:
    """One pickle in the making. Strings, containers and objects are remembered and written once."""

    def __init__(self, protocol: int) -> None:
        self.protocol = protocol
        self.out = bytearray(b"\x80" + bytes([protocol]))
        self._memo: dict[object, int] = {}
        self._kept: list[object] = []  # ids in the memo stay valid while their objects live

    def _seen(self, key: object) -> bool:
        number = self._memo.get(key)
        if number is None:
            return False
        self.out += b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
        return True

    def _remember(self, key: object, obj: object) -> None:
        number = len(self._memo)
        self._memo[key] = number
        self._kept.append(obj)
        if self.protocol >= 4:
            self.out += b"\x94"
        else:
            self.out += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def value(self, obj: Any) -> None:
        """Append the opcodes for one value."""
        kind = type(obj)
        if obj is None or kind is bool:
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[obj]
        elif kind is int:
            self._int(obj)
        elif kind is float:
            self.out += b"G" + struct.pack(">d", obj)
        elif kind is str:
            self._str(obj)
        elif kind is tuple and len(obj) == 0:
            self.out += b")"
        elif kind is Name:
            self._name(obj)
        elif not self._seen(id(obj)):
            self._object(obj, kind)

    def _int(self, number: int) -> None:
        if 0 <= number < 256:
            self.out += b"K" + bytes([number])
        elif 0 <= number < 65536:
            self.out += b"M" + struct.pack("<H", number)
        elif -(2**31) <= number < 2**31:
            self.out += b"J" + struct.pack("<i", number)
        else:
            raw = number.to_bytes(9, "little", signed=True)
            self.out += b"\x8a" + bytes([len(raw)]) + raw

    def _str(self, text: str) -> None:
        if self._seen(text):
            return
        raw = text.encode()
        if self.protocol >= 4 and len(raw) < 256:
            self.out += b"\x8c" + bytes([len(raw)]) + raw
        else:
            self.out += b"X" + struct.pack("<I", len(raw)) + raw
        self._remember(text, text)

    def _name(self, name: Name) -> None:
        if self._seen(name):
            return
        if self.protocol >= 4:
            self._str(name.module)
            self._str(name.name)
            self.out += b"\x93"
        else:
            self.out += f"c{name.module}\n{name.name}\n".encode()
        self._remember(name, name)

    def _object(self, obj: Any, kind: type) -> None:
        if kind is tuple:
            self._tuple(obj)
            self._remember(id(obj), obj)
        elif kind is list:
            self.out += b"]"
            self._remember(id(obj), obj)
            self._items(obj, b"e")
        elif kind is dict:
            self.out += b"}"
            self._remember(id(obj), obj)
            self._items([part for pair in obj.items() for part in pair], b"u")
        elif kind is Call:
            self._name(obj.function)
            self.value(obj.arguments)
            self.out += b"R"
            self._remember(id(obj), obj)
        elif kind is Instance:
            self._name(obj.cls)
            self.out += b")\x81"
            self._remember(id(obj), obj)
            if obj.state is not None:
                self.value(obj.state)
                self.out += b"b"
        elif kind is Persistent:
            self.value(obj.key)
            self.out += b"Q"
        else:
            raise TypeError(f"no opcode here for {kind.__name__}")

    def _tuple(self, items: tuple[Any, ...]) -> None:
        if len(items) <= 3:
            for item in items:
                self.value(item)
            self.out += (b"\x85", b"\x86", b"\x87")[len(items) - 1]
        else:
            self.out += b"("
            for item in items:
                self.value(item)
            self.out += b"t"

    def _items(self, items: Sequence[Any], opcode: bytes) -> None:
        for start in range(0, len(items), 2000):  # in batches, as Python's pickler does
            self.out += b"("
            for item in items[start : start + 2000]:
                self.value(item)
            self.out += opcode


def pickled(value: Any, protocol: int = 2) -> bytes:
    """A pickle of plain values and of Name, Call, Instance, Persistent."""
    pickling = _Pickling(protocol)
    pickling.value(value)
    return bytes(pickling.out + b".")


def tensor(dtype: str, shape: Sequence[int], key: str = "0") -> Call:
    """What torch.save puts into data.pkl for a contiguous tensor with its own storage. dtype is "bfloat16"
    or so."""
    numel = 1
    strides: list[int] = []
    for size in reversed(shape):
        strides.insert(0, numel)
        numel *= size
    storage = {"bfloat16": "BFloat16Storage", "float32": "FloatStorage", "float16": "HalfStorage"}[dtype]
    place = Persistent(("storage", Name("torch", storage), key, "cpu", numel))
    hooks = Call(Name("collections", "OrderedDict"), ())
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (place, 0, tuple(shape), tuple(strides), False, hooks))


def write_archive(file: BinaryIO, value: Any, storages: Iterable[bytes | memoryview] = ()) -> int:
    """Append one torch.save archive holding `value` and its storages ("0", "1", ...); returns its size in
    bytes."""
    entries: list[tuple[str, bytes | memoryview]] = [
        ("data.pkl", pickled(value)),
        (".format_version", b"1"),
        (".storage_alignment", b"64"),
        ("byteorder", b"little"),
    ]
    entries += [(f"data/{number}", data) for number, data in enumerate(storages)]
    entries += [("version", b"3\n"), (".data/serialization_id", b"0" * 40)]
    position, directory = 0, bytearray()
    for short, data in entries:
        name, size, crc = f"archive/{short}".encode(), len(data), zlib.crc32(data)
        # the extra field "FB" pads the data to the alignment
        padding = -(position + 30 + len(name) + 4) % ALIGNMENT
        extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), len(extra))
        descriptor = struct.pack("<4sIII", b"PK\7\x08", crc, size, size)
        directory += struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            *(b"PK\1\2", 0, 0, 0x808, 0, 0, 0, crc, size, size, len(name), 0, 0, 0, 0, 0, position),
        )
        directory += name
        file.write(local + name + extra)
        file.write(data)
        file.write(descriptor)
        position += len(local) + len(name) + len(extra) + size + len(descriptor)
    count, where = len(entries), position
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 798, 45, 0, 0, count, count, len(directory), where)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, where + len(directory), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), where, 0)
    file.write(bytes(directory) + end64 + locator + end)
    return position + len(directory) + len(end64) + len(locator) + len(end)
