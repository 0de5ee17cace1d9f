"""What a pickle would make a normal loader do, found by walking its opcodes: nothing is built or run.

An abstract machine: names, text, small integers, tuples and what a call gave are followed through stack and memo,
all other values are alike. All opcodes are understood, also those that crossdock's own reader refuses. Time is linear
in the bytes, memory is bounded. Facts from CPython 3.11 `Lib/pickletools.py` and `Modules/_pickle.c`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from crossdock.scan.calls import call_problem
from crossdock.scan.feed import MAX_TEXT, Broken, Feed, Read
from crossdock.scan.harmless import LOADER, Name, known
from crossdock.scan.values import MARK, Items, Result, Sighting, Text, Tuple, made_by, tuple_of, unescaped
from crossdock.unpickle.opcodes import ARGUMENTS, NAMES

MAX_SIGHTINGS = 100
MAX_STACK = 500_000  # values
MAX_MEMO = 4_000_000  # remembered values

_WITH_TEXT: Final = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)
_INTEGERS: Final = frozenset({"BININT", "BININT1", "BININT2"})
_PUSH: Final = frozenset(
    op for op, name in NAMES.items() if name in ("NONE", "NEWTRUE", "NEWFALSE", "NEXT_BUFFER")
)  # opcodes without an argument that push a plain value
_EMPTY: Final = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_TO_MARK: Final = {"LIST": "list", "DICT": "dict"}
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INTO: Final = {"APPENDS": -1, "SETITEMS": -1, "ADDITEMS": -1, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
_FILLS: Final = {"APPENDS": "list", "APPEND": "list", "SETITEMS": "dict", "SETITEM": "dict", "ADDITEMS": "set"}
_CALLS: Final = {"REDUCE": 1, "NEWOBJ": 1, "NEWOBJ_EX": 2}
_HOOK: Final = "__setstate__"  # as an attribute of an object it is called by the next BUILD
_MARK, _STOP, _POP, _BINPUT, _BINGET, _BININT1 = 0x28, 0x2E, 0x30, 0x71, 0x68, 0x4B
_MEMOIZE, _EMPTY_TUPLE = 0x94, Tuple((), 1, 1)


@dataclass(slots=True)
class Budget:
    """How much work one file may ask for: `steps` of walking (an opcode each), `unpacked` bytes of compressed data."""

    steps: int
    unpacked: int

    @staticmethod
    def of(size: int) -> Budget:
        """For a file of `size` bytes: linear in it."""
        return Budget(500_000 + 8 * size, (64 << 20) + 32 * size)


@dataclass(slots=True)
class Walked:
    """What one pickle would do.

    found     in file order, counted beyond MAX_SIGHTINGS
    end       the offset after the pickle; None when it is broken, cut off or was not walked to its end
    storages  bytes of each torch storage that its persistent ids name, None for one that is not understood
    inner     (offset, bytes) of bytes that a loader would unpickle in turn
    """

    found: list[Sighting] = field(default_factory=list)
    end: int | None = None
    storages: dict[str, int | None] = field(default_factory=dict)
    inner: list[tuple[int, int]] = field(default_factory=list)


class _Refused(Exception):
    """A limit is reached: what follows is not looked at."""


def walk(read: Read, start: int, size: int, budget: Budget) -> Walked:
    """Everything that a loader of the pickle at `start` of `size` bytes would do beyond building data.

    Never raises for any bytes; what `read` raises goes through.
    """
    run = _Walk(read, start, size)
    try:
        run.go(budget)
    except Broken as broken:
        run.last("broken", str(broken))
    except _Refused as refused:
        run.last("refused", str(refused))
    if run.more:
        run.last("call", f"and {run.more} more")
    return run.out


class _Walk(Feed):
    def __init__(self, read: Read, start: int, size: int) -> None:
        self.out = Walked()
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.counted: int | None = None  # entries made by MEMOIZE; -1: by PUT
        self.seen: dict[tuple[str, str], Name] = {}
        self.more = 0
        self.highest = -1  # index in the memo
        self.charge = 0  # bytes that calls would copy
        super().__init__(read, start, size)

    # --- findings

    def note(self, at: int, name: str, severity: str, sentence: str) -> None:
        if len(self.out.found) < MAX_SIGHTINGS:
            self.out.found.append(Sighting(at, name, severity, sentence))
        else:
            self.more += 1

    def last(self, severity: str, sentence: str) -> None:
        """A sighting that is kept however many there are."""
        self.out.found.append(Sighting(self.at, "", severity, sentence))

    # --- the stack

    def pop(self) -> object:
        if not self.stack or self.stack[-1] is MARK:
            raise Broken("the pickle takes from an empty stack")
        return self.stack.pop()

    def top(self) -> object:
        if not self.stack or self.stack[-1] is MARK:
            raise Broken("the pickle takes from an empty stack")
        return self.stack[-1]

    def pop_to_mark(self) -> list[object]:
        taken: list[object] = []
        while self.stack:
            value = self.stack.pop()
            if value is MARK:
                return taken[::-1]
            taken.append(value)
        raise Broken("the pickle takes from an empty stack")

    def recall(self, index: int) -> None:
        if index > self.highest:
            raise Broken("the pickle takes from an empty memo")
        self.stack.append(self.memo.get(index))

    def remember(self, index: int, value: object) -> None:
        if index > self.highest:
            self.highest = index
        elif value is None:
            self.memo.pop(index, None)
        if value is None:
            return
        self.memo[index] = value
        if len(self.memo) > MAX_MEMO:
            raise _Refused(f"more than {MAX_MEMO} remembered values; the rest was not scanned")

    # --- opcodes

    def go(self, budget: Budget) -> None:
        """Walk to STOP. The opcodes that make up most of a pickle come first."""
        stack, push, steps = self.stack, self.stack.append, budget.steps
        begin = self.at
        try:
            while True:
                if steps <= 0:
                    raise _Refused("more opcodes than a file of this size needs; the rest was not scanned")
                steps -= 1
                at = self.pos
                if at + 1 >= len(self.data):
                    self.have(2)
                    at = self.pos
                    if at >= len(self.data):
                        raise Broken("the pickle ends without STOP")
                op = self.data[at]
                self.pos = at + 1
                if op in _PUSH:
                    push(None)
                elif op == _MARK:
                    push(MARK)
                elif op == _BINPUT and self.counted in (None, -1) and self.pos < len(self.data):
                    self.counted = -1
                    self.pos = at + 2
                    self.remember(self.data[at + 1], self.top())
                elif op == _MEMOIZE and self.counted != -1:
                    self.remember(self.counted or 0, self.top())
                    self.counted = (self.counted or 0) + 1
                elif op == _STOP:
                    self.top()
                    self.out.end = self.at
                    return
                elif op not in NAMES:
                    self.pos = at
                    raise Broken(f"byte 0x{op:02x} is not an opcode")
                elif ARGUMENTS[op]:
                    self.argument(self.base + at, NAMES[op], ARGUMENTS[op], begin)
                else:
                    self.plain(self.base + at, NAMES[op])
                if len(stack) > MAX_STACK:
                    raise _Refused(f"more than {MAX_STACK} nested values; the rest was not scanned")
        finally:
            budget.steps = steps

    def plain(self, at: int, op: str) -> None:
        """An opcode without an argument."""
        stack = self.stack
        if op in _TUPLES:
            self.tuple([self.pop() for _ in range(_TUPLES[op])][::-1])
        elif op == "POP":
            if not stack:
                raise Broken("the pickle takes from an empty stack")
            stack.pop()
        elif op == "MEMOIZE":
            raise _Refused("the memo is written in two ways")
        elif op == "TUPLE":
            self.tuple(self.pop_to_mark())
        elif op in _EMPTY:
            stack.append(Items(_EMPTY[op]))
        elif op in _INTO:
            self.into(at, op)
        elif op in _CALLS:
            args = [self.pop() for _ in range(_CALLS[op])][::-1]
            self.call(at, self.pop(), args[0], op, args[1:])
        elif op == "STACK_GLOBAL":
            name = self.pop()
            self.mention(at, self.pop(), name)
        elif op == "OBJ":
            args = self.pop_to_mark()
            if not args:
                raise Broken("the pickle takes from an empty stack")
            self.call(at, args[0], tuple_of(args[1:]), op, [])
        elif op in _TO_MARK:
            taken = self.pop_to_mark()
            if op == "DICT":
                self.keys(at, taken[::2])
            stack.append(Items(_TO_MARK[op], len(taken)))
        elif op == "FROZENSET":
            self.keys(at, self.pop_to_mark())
            stack.append(None)
        elif op == "POP_MARK":
            self.pop_to_mark()
        elif op == "DUP":
            stack.append(self.top())
        elif op == "BINPERSID":
            self.persistent(at, self.pop())
        elif op == "READONLY_BUFFER":
            self.top()

    def argument(self, at: int, op: str, kind: str, begin: int) -> None:
        """An opcode with an argument."""
        if kind in ("line", "lines"):
            self.lines(at, op, kind, begin)
            return
        number = int.from_bytes(self.take(int(kind.lstrip("l")), op), "little")
        if kind[0] == "l":
            if op == "LONG1" and number <= 8:
                self.stack.append(int.from_bytes(self.take(number, op), "little", signed=True))
            elif op in _WITH_TEXT:
                self.text(number, op)
            else:
                place = self.at
                self.skip(number, op)
                self.stack.append(Text(number, place) if "BYTE" in op else None)
        elif op in _INTEGERS:
            self.stack.append(number - (1 << 32) if op == "BININT" and number >> 31 else number)
        elif op in ("BINGET", "LONG_BINGET"):
            self.recall(number)
        elif op in ("BINPUT", "LONG_BINPUT"):
            self.put(at, number, at - begin)
        elif op == "FRAME":
            if self.at + number > self.size:
                raise Broken("the pickle is truncated in FRAME")
        elif op.startswith("EXT"):
            self.note(at, f"extension {number}", "call", "a loader would use a registered extension code")
            self.stack.append(None)
        elif op != "PROTO":
            self.stack.append(None)
        elif number > 5:
            raise Broken(f"pickle protocol {number}")

    def lines(self, at: int, op: str, kind: str, begin: int) -> None:
        """An opcode whose argument is a line, or two."""
        line = self.line(op)
        if kind == "lines":
            other = self.line(op)
            args = self.pop_to_mark() if op == "INST" else []
            self.mention(at, line.decode("utf-8", "replace"), other.decode("utf-8", "replace"))
            if op == "INST":
                self.call(at, self.pop(), tuple_of(args), op, [])
        elif op in ("GET", "PUT"):
            if not line.isdigit() or len(line) > 10:
                raise Broken(f"{op} without a plain number")
            if op == "GET":
                self.recall(int(line))
            else:
                self.put(at, int(line), at - begin)
        elif op == "UNICODE":
            self.push_text(unescaped(line, "raw-unicode-escape"))
        elif op == "STRING":
            self.push_text(unescaped(line.strip()[1:-1], "unicode-escape"))
        else:
            self.stack.append(None)

    def text(self, count: int, op: str) -> None:
        if count > MAX_TEXT:
            self.skip(count, op)
            self.stack.append(Text(count))
            return
        self.push_text(self.take(count, op).decode("utf-8", "replace"))

    def push_text(self, text: object) -> None:
        if text == _HOOK:
            self.note(self.at, _HOOK, "call", f"an attribute named {_HOOK} is called when a loader sets attributes")
        self.stack.append(text)

    def put(self, at: int, index: int, position: int) -> None:
        value = self.top()
        if self.counted not in (None, -1):
            raise _Refused("the memo is written in two ways")
        if index > position + 2:  # an entry takes opcodes, so no writer has come that far
            what = f"memo index {index} at byte {position}: a loader would allocate all before it"
            self.note(at, "", "refused", what)
        self.counted = -1
        self.remember(index, value)

    def tuple(self, items: list[object]) -> None:
        made = tuple_of(items) if items else _EMPTY_TUPLE
        if made.weight > 50_000_000 or made.depth > 64:
            raise _Refused("tuples nested without limit")
        self.stack.append(made)

    def mention(self, at: int, module: object, name: object) -> None:
        """GLOBAL, STACK_GLOBAL: loading imports the module, which runs its code."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.note(at, "?", "call", "a loader would look up a name built while loading")
            self.stack.append(None)
            return
        target = self.seen.get((module, name))
        if target is None:
            target = self.seen[module, name] = known(module, name)
            if not target.use:
                what = f"a loader would import {target.shown_module} to get {target.qualified}"
                self.note(at, target.qualified, "import", what)
        self.stack.append(target)

    def call(self, at: int, target: object, args: object, op: str, keywords: list[object]) -> None:
        """REDUCE, NEWOBJ, INST, OBJ: a loader would call `target`."""
        problem = call_problem(target, args, op, keywords)
        if problem:
            name = target.qualified if isinstance(target, Name) else "?"
            self.note(at, name, "call", problem)
        if isinstance(target, Name) and target.use == LOADER and not problem and isinstance(args, Tuple):
            self.out.inner += [(one.place, one.length) for one in args.items if isinstance(one, Text)]
        if isinstance(args, Tuple):
            self.charge += args.copies
            if self.charge > 64 * self.size + (1 << 20):
                raise _Refused("a loader would copy far more data than the file holds")
        if isinstance(target, Name) and target.use and target.sizes:
            sizes = args.items if isinstance(args, Tuple) else ()
            if any(isinstance(one, int) and one > 1 << 20 for one in sizes):
                self.note(at, target.qualified, "refused", f"a loader would allocate a large {target.qualified}")
        self.stack.append(made_by(target) if isinstance(target, Name) else None)

    def keys(self, at: int, keys: list[object]) -> None:
        """Keys of a dict are hashed: nested tuples make that exponential."""
        for key in keys:
            if isinstance(key, Items):
                raise Broken(f"a {key.kind} as a key: a loader fails here")
            if isinstance(key, Tuple) and (key.weight > 4096 or key.depth > 3):
                self.note(at, "", "refused", "a dict key of nested tuples: hashing it may never finish")

    def into(self, at: int, op: str) -> None:
        """APPEND, SETITEM, BUILD and their like: on a name, they change what the name refers to."""
        count = _INTO[op]
        values = self.pop_to_mark() if count < 0 else [self.pop() for _ in range(count)][::-1]
        target = self.top()
        if "SETITEM" in op:
            self.keys(at, values[::2])
        elif op == "ADDITEMS":
            self.keys(at, values)
        if isinstance(target, Name):
            self.note(at, target.qualified, "call", f"a loader would change {target.qualified} itself ({op})")
        elif isinstance(target, Result):
            if op != "BUILD" and op.rstrip("S") not in target.of.fills:
                what = f"a loader would call a method of the result of {target.of.qualified} ({op})"
                self.note(at, target.of.qualified, "call", what)
        elif isinstance(target, Items) and target.kind == _FILLS.get(op):
            target.count += len(values)
        else:
            self.note(at, "?", "call", f"a loader would call a method of a value made while loading ({op})")

    def persistent(self, at: int, pid: object) -> None:
        """BINPERSID: a torch storage, ("storage", class, key, location, elements[, view])."""
        self.stack.append(None)
        if not isinstance(pid, Tuple) or len(pid.items) < 5 or pid.items[0] != "storage":
            if isinstance(pid, Tuple) and pid.items and pid.items[0] == "module":
                self.note(at, "", "call", "a loader would make a module and compare its source text")
            return
        kind, key, count = pid.items[1], pid.items[2], pid.items[4]
        if not isinstance(kind, Name) or not isinstance(key, str):
            return
        if kind.use and kind.itemsize and isinstance(count, int):
            self.out.storages[key] = count * kind.itemsize
        else:
            self.out.storages[key] = None
