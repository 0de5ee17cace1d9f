"""What a pickle would make a normal loader do, found by walking its opcodes: nothing is built or run.

The stack is followed only as far as it says what is called: names, text and the results of calls are known,
all other values are alike. All opcodes are understood, also those that the machine refuses.
Facts from CPython 3.11 `Lib/pickletools.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from crossdock.unpickle.opcodes import ARGUMENTS, NAMES
from crossdock.unpickle.schema import call_rule, is_known
from crossdock.unpickle.values import Global, printable

Severity = Literal["call", "import", "refused", "broken"]

MAX_SIGHTINGS = 100
MAX_OPCODES = 4_000_000
_WITH_TEXT: Final = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)
_PUSH: Final = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "NONE", "NEWTRUE"}
    | {"NEWFALSE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "NEXT_BUFFER", "PERSID"}
    | {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"}
)
_PLAIN: Final = frozenset(op for op, name in NAMES.items() if name in _PUSH and not ARGUMENTS[op])
_TO_MARK: Final = frozenset({"LIST", "DICT", "TUPLE", "FROZENSET"})
_INTO: Final = {"APPENDS": -1, "SETITEMS": -1, "ADDITEMS": -1, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
_ARGUMENTS_OF_CALL: Final = {"REDUCE": 1, "NEWOBJ": 1, "NEWOBJ_EX": 2}


@dataclass(frozen=True, slots=True)
class Sighting:
    """Something in a pickle that deserves a look: at which byte, which name, how bad, in a sentence."""

    offset: int
    name: str
    severity: Severity
    sentence: str


class _Mark:
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Tuple:
    """A tuple of which only the first text is kept, to show it."""

    text: str


@dataclass(frozen=True, slots=True)
class _Result:
    """What a call gave; calling it again runs whatever it is."""

    of: str


MARK: Final = _Mark()


@dataclass(slots=True)
class _Walk:
    found: list[Sighting] = field(default_factory=list)
    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)
    more: int = 0

    def note(self, at: int, name: str, severity: Severity, sentence: str) -> None:
        if len(self.found) < MAX_SIGHTINGS:
            self.found.append(Sighting(at, name, severity, sentence))
        else:
            self.more += 1

    def last(self, at: int, severity: Severity, sentence: str) -> None:
        """A sighting that is kept however many there are."""
        self.found.append(Sighting(at, "", severity, sentence))

    def pop(self) -> object:
        return self.stack.pop() if self.stack else None

    def pop_to_mark(self) -> list[object]:
        taken: list[object] = []
        while self.stack:
            value = self.stack.pop()
            if value is MARK:
                break
            taken.append(value)
        return taken[::-1]

    def mention(self, at: int, module: object, name: object) -> None:
        """GLOBAL, STACK_GLOBAL: loading imports the module, which runs its code."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.note(at, "?", "call", "a loader would look up a name that is put together while loading")
            self.stack.append(None)
            return
        target = Global(module, name)
        self.stack.append(target)
        if (module, name) not in self.seen:
            self.seen.add((module, name))
            if not is_known(module, name):
                self.note(
                    at,
                    target.qualified,
                    "import",
                    f"a loader would import {printable(module)} to get {target.qualified}",
                )

    def call(self, at: int, target: object, args: list[object]) -> None:
        """REDUCE, NEWOBJ, INST, OBJ: a loader would call `target`."""
        text = next((one.text if isinstance(one, _Tuple) else one for one in args if _has_text(one)), None)
        shown = f"({printable(str(text), 80)!r})" if text is not None else "(...)"
        if isinstance(target, Global):
            if call_rule(target.module, target.name) is None:
                self.note(at, target.qualified, "call", f"a loader would call {target.qualified}{shown}")
            self.stack.append(_Result(target.qualified))
            return
        of = f"the result of {target.of}" if isinstance(target, _Result) else "a value made while loading"
        self.note(at, "?", "call", f"a loader would call {of}{shown}")
        self.stack.append(None)

    def into(self, at: int, op: str) -> None:
        """APPEND, SETITEM, BUILD and their like: on a name, they change what the name refers to."""
        count = _INTO[op]
        if count < 0:
            self.pop_to_mark()
        else:
            del self.stack[-count:]
        target = self.stack[-1] if self.stack else None
        if isinstance(target, Global):
            self.note(at, target.qualified, "call", f"a loader would change {target.qualified} itself ({op})")

    def step(self, at: int, op: str, text: str | None, number: int) -> None:
        """Follow one opcode."""
        stack = self.stack
        if op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1] if stack else None
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo.get(number))
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[number] = stack[-1] if stack else None
        elif op in _PUSH:
            stack.append(None)
        elif op in _WITH_TEXT:
            stack.append(text)
        elif op == "MARK":
            stack.append(MARK)
        elif op in _INTO:
            self.into(at, op)
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(op[-1])
            taken = stack[-count:]
            stack[-count:] = [_tuple(taken)]
        elif op in _ARGUMENTS_OF_CALL:
            args = [self.pop() for _ in range(_ARGUMENTS_OF_CALL[op])]
            self.call(at, self.pop(), args)
        elif op == "STACK_GLOBAL":
            name = self.pop()
            self.mention(at, self.pop(), name)
        elif op in ("GLOBAL", "INST"):
            module, _, name = (text or "").partition("\n")
            args = self.pop_to_mark() if op == "INST" else []
            self.mention(at, module, name)
            if op == "INST":
                self.call(at, self.pop(), args)
        elif op == "OBJ":
            args = self.pop_to_mark()
            self.call(at, args[0] if args else None, args[1:])
        elif op in _TO_MARK:
            stack.append(_tuple(self.pop_to_mark()))
        elif op == "POP":
            self.pop()
        elif op == "POP_MARK":
            self.pop_to_mark()
        elif op == "DUP":
            stack.append(stack[-1] if stack else None)
        elif op == "BINPERSID":
            self.pop()
            stack.append(None)
        elif op in ("EXT1", "EXT2", "EXT4"):
            self.note(at, f"extension {number}", "call", "a loader would use a registered extension code")
            stack.append(None)


def walk(data: bytes, start: int = 0, opcodes: int = MAX_OPCODES) -> tuple[list[Sighting], int | None]:
    """Everything that a loader of the pickle at `start` would do beyond building data, in file order.

    Returns the sightings and the offset after the pickle, None when the pickle is broken, truncated or longer
    than `opcodes` (the last sighting says where). Never raises for any bytes.
    """
    run = _Walk()
    at, end, size, push = start, None, len(data), run.stack.append
    for _ in range(opcodes):
        if at >= size:
            run.last(at, "broken", "the pickle ends before its end")
            break
        op = data[at]
        if op in _PLAIN:
            push(None)
            at += 1
            continue
        name = NAMES.get(op)
        if name is None:
            run.last(at, "broken", f"byte 0x{op:02x} is not an opcode")
            break
        kind = ARGUMENTS[op]
        text, number, after = _argument(data, at + 1, kind, name) if kind else (None, 0, at + 1)
        if after is None:
            run.last(at, "broken", f"the pickle is truncated in {name}")
            break
        if name == "STOP":
            end = after
            break
        run.step(at, name, text, number)
        at = after
    else:
        run.last(at, "refused", f"more than {opcodes} opcodes; the rest was not looked at")
    if run.more:
        run.last(at, "call", f"and {run.more} more")
    return run.found, end


def _argument(data: bytes, at: int, kind: str, name: str) -> tuple[str | None, int, int | None]:
    """Text and number of an opcode's argument, and the offset after it (None: truncated)."""
    if kind.startswith("line"):
        end = data.find(b"\n", at)
        if kind == "lines" and end >= 0:
            end = data.find(b"\n", end + 1)
        if end < 0:
            return None, 0, None
        raw = data[at : min(end, at + 4096)]
        text = raw.decode("utf-8", "replace")
        if name == "STRING":
            text = text.strip("'\"")
        elif name == "UNICODE":
            text = raw.decode("raw-unicode-escape", "replace")
        digits = raw[:20].strip()
        return text, int(digits) if digits.isdigit() else -1, end + 1
    width = int(kind.lstrip("l"))
    end = at + width
    if end > len(data):
        return None, 0, None
    number = int.from_bytes(data[at:end], "little")
    if not kind.startswith("l"):
        return None, number, None if name == "FRAME" and end + number > len(data) else end
    if end + number > len(data):
        return None, 0, None
    if name not in _WITH_TEXT:
        return None, number, end + number
    return data[end : end + min(number, 4096)].decode("utf-8", "replace"), number, end + number


def _has_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, _Tuple) and value.text != "")


def _tuple(items: list[object]) -> _Tuple | None:
    for item in items:
        if type(item) is str and item:
            return _Tuple(item)
    return None
