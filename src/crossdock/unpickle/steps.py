"""The steps of the pickle machine that need more than a line: calls, keys, limits, messages.

Nothing here imports or calls what a pickle names. Facts from CPython 3.11 `Lib/pickle.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NoReturn

from crossdock.errors import FormatError, UnsafePickleError
from crossdock.unpickle.limits import Limits, TruncatedPickleError
from crossdock.unpickle.opcodes import NAMES
from crossdock.unpickle.schema import INERT, call_rule
from crossdock.unpickle.values import Global, Instance, Rule, StateDict, TensorRef, describe, printable

SCAN_HINT = "run `crossdock scan PATH` to list every call in this checkpoint"

_U32, _I32, _U64 = Struct("<I").unpack_from, Struct("<i").unpack_from, Struct("<Q").unpack_from
_PLAIN_KEYS = frozenset({str, bool, type(None), bytes, float, Global, Instance})

# opcode -> how its length is read (None: one byte), bytes of the length, what follows ("old": Python 2's str)
_SIZED: Final[Mapping[int, tuple[Callable[..., tuple[Any, ...]] | None, int, str]]] = MappingProxyType(
    {
        0x58: (_U32, 4, "str"),  # BINUNICODE
        0x8D: (_U64, 8, "str"),  # BINUNICODE8
        0x43: (None, 1, "bytes"),  # SHORT_BINBYTES
        0x42: (_U32, 4, "bytes"),  # BINBYTES
        0x8E: (_U64, 8, "bytes"),  # BINBYTES8
        0x55: (None, 1, "old"),  # SHORT_BINSTRING
        0x54: (_U32, 4, "old"),  # BINSTRING
        0x8A: (None, 1, "int"),  # LONG1
        0x8B: (_I32, 4, "int"),  # LONG4
    }
)


class SparseMemo(dict[int, object]):
    """The memo of a writer that skipped numbers: indexed like a list, without holes that cost memory."""

    def append(self, value: object) -> None:
        self[len(self)] = value


class Run:
    """One run over `data`: the steps that need more than a line. `at` is the current opcode."""

    __slots__ = ("at", "budget", "data", "globals", "limits", "more", "persistent", "tuple_keys", "where")

    def __init__(
        self,
        data: bytes,
        where: str,
        limits: Limits,
        persistent: Callable[[object], object] | None,
        more: Mapping[tuple[str, str], Rule] | None = None,
    ) -> None:
        self.data = data
        self.where = where
        self.limits = limits
        self.persistent = persistent
        self.more = more or {}
        self.at = 0
        self.budget = len(data) + 4096
        self.tuple_keys = limits.tuple_keys
        self.globals: dict[tuple[str, str], Global] = {}

    def place(self) -> str:
        return f"{self.where}: byte {self.at} of the pickle"

    def opcode(self) -> str:
        op = self.data[self.at] if self.at < len(self.data) else 0
        return NAMES.get(op, f"0x{op:02x}")

    def unsafe(self, what: str, fix: str = "") -> NoReturn:
        raise UnsafePickleError(f"{what} (opcode {self.opcode()})", where=self.place(), fix=fix)

    def broken(self, what: str) -> NoReturn:
        raise FormatError(f"{what} (opcode {self.opcode()})", where=self.place())

    def truncated(self) -> NoReturn:
        raise TruncatedPickleError(f"the pickle is truncated (opcode {self.opcode()})", where=self.place())

    def charge(self, amount: int) -> None:
        """Copies made by calls may not add up to more than the pickle itself."""
        self.budget -= amount
        if self.budget < 0:
            self.unsafe("the pickle copies more data than it holds")

    def name(self, module: object, name: object) -> Global:
        """The one `Global` of this run for a pair of names."""
        if type(module) is not str or type(name) is not str:
            self.broken("a global whose name is not text")
        known = self.globals.get((module, name))
        if known is None:
            if len(module) + len(name) > 1024:
                self.unsafe("a global with a name of more than 1024 characters")
            known = self.globals[module, name] = Global(
                module, name, self.more.get((module, name)) or call_rule(module, name)
            )
        return known

    def call(self, target: object, args: object) -> object:
        """REDUCE and NEWOBJ: a stand-in, or the value of a pure constructor of our own."""
        if type(args) is not tuple:
            self.broken("a call whose arguments are not a tuple")
        if type(target) is not Global:
            self.unsafe(f"the pickle calls {describe(target)}, not a named class", SCAN_HINT)
        rule = target.rule
        if rule is INERT:
            return Instance(target, args)
        if not callable(rule):
            self.unsafe(f"the pickle would call {target.qualified}", SCAN_HINT)
        try:
            return rule(args, self.charge)
        except (ValueError, TypeError, KeyError) as error:
            reason = str(error) if type(error) is ValueError else "arguments that do not fit"
            self.broken(f"{target.qualified}: {printable(reason, 300)}")

    def check_key(self, key: object) -> None:
        """Dict keys and set elements are flat: hashing takes constant time and cannot be made to collide."""
        kind = type(key)
        if kind in _PLAIN_KEYS:
            return
        if kind is int:
            if not -(1 << 60) < key < 1 << 60:  # type: ignore[operator]
                self.unsafe("a dict key that is a huge integer")
            return
        if kind is not tuple:
            self.unsafe(f"a dict key that is {describe(key)}")
        self.tuple_keys -= 1
        if self.tuple_keys < 0 or len(key) > 64:  # type: ignore[arg-type]
            self.unsafe("too many or too long dict keys that are tuples")
        for item in key:  # type: ignore[attr-defined]
            if type(item) is tuple:
                self.unsafe("a dict key that is a tuple of tuples")
            self.check_key(item)

    def check_tuple(self, child: object) -> None:
        """Tuples nested in their first or only elements deeper than any writer does."""
        for _ in range(self.limits.tuple_nest):
            if type(child) is not tuple or not child:
                return
            child = child[0] if type(child[0]) is tuple else child[-1]
        self.unsafe(f"tuples nested deeper than {self.limits.tuple_nest}")

    def set_pairs(self, target: object, pairs: list[object]) -> None:
        """SETITEM(S): keys and values in turn."""
        if len(pairs) % 2:
            self.broken("an odd number of keys and values")
        if isinstance(target, dict):
            into = target
        elif type(target) is Instance:
            if target.pairs is None:
                target.pairs = {}
            into = target.pairs
        else:
            self.unsafe(f"the pickle sets items of {describe(target)}")
        for at in range(0, len(pairs), 2):
            key = pairs[at]
            if type(key) is not str:
                self.check_key(key)
            into[key] = pairs[at + 1]

    def extend(self, target: object, items: list[object]) -> None:
        """Run the opcodes APPEND and APPENDS."""
        if type(target) is list:
            target.extend(items)
        elif type(target) is Instance:
            if target.items is None:
                target.items = []
            target.items.extend(items)
        else:
            self.unsafe(f"the pickle appends to {describe(target)}")

    def add(self, target: object, items: list[object]) -> None:
        """Run the opcode ADDITEMS."""
        if type(target) is not set:
            self.unsafe(f"the pickle adds to {describe(target)}")
        for item in items:
            self.check_key(item)
        target.update(items)

    def build(self, target: object, state: object) -> None:
        """BUILD: the state is kept beside the stand-in."""
        if type(target) is Instance:
            target.state = state
        elif type(target) is StateDict:
            target.attributes = state
        elif type(target) is not TensorRef:  # attributes of a tensor change nothing about its values
            self.unsafe(f"the pickle sets attributes of {describe(target)}", SCAN_HINT)

    def put(self, memo: list[object] | SparseMemo, index: int, value: object) -> list[object] | SparseMemo:
        """BINPUT out of sequence: overwriting, or a writer that skips numbers (Python 2 starts at 1)."""
        if index > self.at + 1:  # every entry needs an opcode, so this is more than can be in use
            self.unsafe(f"memo index {index} at byte {self.at}")
        if index > len(memo) and type(memo) is list:
            memo = SparseMemo(enumerate(memo))
        memo[index] = value
        return memo

    def finish(self, outer: list[object], items: list[object]) -> object:
        """End early: set the attributes read so far on the outermost object (SETITEMS, BUILD, STOP)."""
        if len(outer) != 2:
            self.broken("attributes that do not belong to the outermost object")
        target, state = outer
        self.set_pairs(state, items)
        self.build(target, state)
        return target

    def resolve(self, pid: object) -> object:
        """Run the opcode BINPERSID."""
        if self.persistent is None:
            self.unsafe("a persistent id that refers to nothing")
        try:
            return self.persistent(pid)
        except ValueError as error:
            self.broken(printable(str(error), 300))

    def text(self, start: int, length: int) -> tuple[str, int]:
        """`length` bytes of UTF-8 at `start`, and the offset after them."""
        end = start + length
        if length > self.limits.text:
            if end > len(self.data):
                raise EOFError
            self.unsafe(f"a string of {length} bytes; the limit is {self.limits.text}")
        if end > len(self.data):
            raise EOFError
        return str(self.data[start:end], "utf-8"), end

    def raw(self, start: int, length: int) -> tuple[bytes, int]:
        """`length` bytes at `start`, and the offset after them."""
        end = start + length
        if end > len(self.data):
            raise EOFError
        return self.data[start:end], end

    def line(self, start: int) -> tuple[str, int]:
        """A line of ASCII text (GLOBAL), and the offset after it."""
        end = self.data.find(b"\n", start, start + 1025)
        if end < 0:
            if len(self.data) < start + 1025:
                raise EOFError
            self.unsafe("a global with a name of more than 1024 characters")
        return str(self.data[start:end], "utf-8"), end + 1

    def integer(self, start: int, length: int) -> tuple[int, int]:
        """A little-endian signed integer of `length` bytes, and the offset after it."""
        if not 0 <= length <= self.limits.integer:
            self.unsafe(f"an integer of {length} bytes; the limit is {self.limits.integer}")
        raw, end = self.raw(start, length)
        return int.from_bytes(raw, "little", signed=True), end

    def rare(self, op: int, pos: int, stack: list[object], outer: list[list[object]]) -> tuple[list[object], int]:
        """Opcodes that are allowed but seldom used. Returns the stack to go on with and the next offset."""
        data = self.data
        if op == 0x80:  # PROTO
            if data[pos] > 5:
                self.broken(f"pickle protocol {data[pos]}")
            return stack, pos + 1
        if op == 0x95:  # FRAME
            (length,) = _U64(data, pos)
            if length > len(data) - pos - 8:
                self.truncated()
            return stack, pos + 8
        if op in _SIZED:
            value: object
            read, width, kind = _SIZED[op]
            length = data[pos] if read is None else read(data, pos)[0]
            if kind == "int":
                value, pos = self.integer(pos + width, length)
            elif kind == "str":
                value, pos = self.text(pos + width, length)
            else:
                value, pos = self.raw(pos + width, length)
            stack.append(value.decode("latin-1") if kind == "old" and type(value) is bytes else value)
        elif op == 0x30:  # POP: an empty level means that the mark itself goes
            if stack:
                stack.pop()
            else:
                stack = outer.pop()
        elif op == 0x31:  # POP_MARK
            stack = outer.pop()
        elif op == 0x8F:  # EMPTY_SET
            stack.append(set())
        elif op == 0x90:  # ADDITEMS
            items, stack = stack, outer.pop()
            self.add(stack[-1], items)
        elif op == 0x91:  # FROZENSET
            items, stack = stack, outer.pop()
            made: set[object] = set()
            self.add(made, items)
            stack.append(frozenset(made))
        elif op == 0x92:  # NEWOBJ_EX
            keywords, args = stack.pop(), stack.pop()
            if type(keywords) is not dict:
                self.broken("keyword arguments that are not a dict")
            made_object = self.call(stack[-1], args)
            if keywords and type(made_object) is Instance:
                made_object.pairs = keywords
            stack[-1] = made_object
        elif op in NAMES:
            self.unsafe(f"opcode {NAMES[op]} is not one that checkpoints use", SCAN_HINT)
        else:
            self.broken("a byte that is not an opcode")
        return stack, pos
