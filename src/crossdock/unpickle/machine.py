"""A pickle machine that only builds data: it imports nothing, calls nothing and is bounded.

Opcodes come from an allow-list (what torch.save, DCP `.metadata` and numpy write); others are refused.
`load` never hashes, compares or prints nested values, so that shared or doubled structures cost nothing.
Facts from CPython 3.11 `Lib/pickletools.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import repeat
from struct import Struct
from struct import error as StructError

from crossdock.errors import UnsafePickleError
from crossdock.unpickle.limits import Limits
from crossdock.unpickle.opcodes import ARGUMENTS
from crossdock.unpickle.schema import INERT
from crossdock.unpickle.steps import Run, SparseMemo
from crossdock.unpickle.values import Global, Instance, Rule

_U32, _I32, _F64 = Struct("<I").unpack_from, Struct("<i").unpack_from, Struct(">d").unpack_from


def load(
    data: bytes,
    *,
    where: str,
    limits: Limits | None = None,
    persistent: Callable[[object], object] | None = None,
    stop_before: str | None = None,
    more: Mapping[tuple[str, str], Rule] | None = None,
) -> object:
    """The value that pickle `data` holds, with inert stand-ins for everything that is not plain data.

    where        file and entry, for messages
    persistent   turns a persistent id (a torch storage) into a value; without it such ids are refused.
                 May raise ValueError with a sentence.
    more         functions of ours for calls that are refused elsewhere
    stop_before  when the attributes of the outermost object reach this name, the rest is left unread

    Raises UnsafePickleError (a call, opcode or amount that is not allowed) or FormatError (broken), both with
    the byte offset.
    """
    return load_at(data, 0, where=where, limits=limits, persistent=persistent, stop_before=stop_before, more=more)[0]


def load_at(
    data: bytes,
    start: int,
    *,
    where: str,
    limits: Limits | None = None,
    persistent: Callable[[object], object] | None = None,
    stop_before: str | None = None,
    more: Mapping[tuple[str, str], Rule] | None = None,
) -> tuple[object, int]:
    """`load` from byte `start` on: the value, and the offset after the pickle."""
    limits = limits or Limits()
    if len(data) - start > limits.bytes:
        raise UnsafePickleError(
            "the pickle is too large",
            where=where,
            expected=f"at most {limits.bytes} bytes",
            got=f"{len(data)}",
        )
    return _run(Run(data, where, limits, persistent, more or {}), start, stop_before)


def _run(run: Run, start: int, stop_before: str | None) -> tuple[object, int]:
    """Execute from `start` to STOP. Errors of the bytes become FormatError here, with the place."""
    try:
        return _loop(run, start, stop_before)
    except (StructError, EOFError):
        run.truncated()
    except IndexError:
        if run.at + 1 >= len(run.data) and ARGUMENTS.get(run.data[-1]) in ("1", "l1"):
            run.truncated()
        run.broken("the pickle takes from an empty stack or memo")
    except KeyError:
        run.broken("the pickle takes from an empty memo")
    except UnicodeDecodeError:
        run.broken("text that is not UTF-8")


def _loop(run: Run, start: int, stop_before: str | None) -> tuple[object, int]:
    """One opcode a turn, tested in the order in which DCP `.metadata` and torch.save use them."""
    data, size, limits, name = run.data, len(run.data), run.limits, run.name
    max_stack, max_marks = limits.stack, limits.marks
    stack: list[object] = []
    outer: list[list[object]] = []
    memo: list[object] | SparseMemo = []
    value: object
    at = pos = start
    try:
        for _ in repeat(None, limits.opcodes):
            at = pos
            if at >= size:
                raise EOFError
            op = data[at]
            pos = at + 1
            if op == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[_U32(data, pos)[0]])
                pos += 4
            elif op == 0x68:  # BINGET
                stack.append(memo[data[pos]])
                pos += 1
            elif op == 0x4B:  # BININT1
                stack.append(data[pos])
                pos += 1
            elif op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
                if op == 0x71:
                    index = data[pos]
                    pos += 1
                else:
                    index = _U32(data, pos)[0]
                    pos += 4
                if index == len(memo):
                    memo.append(stack[-1])
                else:
                    run.at = at
                    memo = run.put(memo, index, stack[-1])
            elif op == 0x28:  # MARK
                outer.append(stack)
                stack = []
                if len(outer) > max_marks:
                    run.at = at
                    run.unsafe(f"marks nested deeper than {max_marks}")
            elif op == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif op == 0x81 or op == 0x52:  # NEWOBJ, REDUCE
                value = stack.pop()
                target = stack[-1]
                if type(target) is Global and target.rule is INERT and type(value) is tuple:
                    stack[-1] = Instance(target, value)
                else:
                    run.at = at
                    stack[-1] = run.call(target, value)
            elif op == 0x62:  # BUILD
                value = stack.pop()
                target = stack[-1]
                if type(target) is Instance:
                    target.state = value
                else:
                    run.at = at
                    run.build(target, value)
            elif op == 0x7D or op == 0x5D:  # EMPTY_DICT, EMPTY_LIST
                stack.append({} if op == 0x7D else [])
                if len(stack) > max_stack:
                    run.at = at
                    run.unsafe(f"more than {max_stack} nested values")
            elif op == 0x75:  # SETITEMS
                items = stack
                stack = outer.pop()
                run.at = at
                run.set_pairs(stack[-1], items)
            elif op == 0x85:  # TUPLE1
                value = stack[-1]
                if type(value) is tuple and value and type(value[-1]) is tuple:
                    run.at = at
                    run.check_tuple(value)
                stack[-1] = (value,)
            elif op == 0x86:  # TUPLE2
                value = stack.pop()
                if type(value) is tuple and value and type(value[-1]) is tuple:
                    run.at = at
                    run.check_tuple(value)
                stack[-1] = (stack[-1], value)
            elif op == 0x87:  # TUPLE3
                value = stack.pop()
                if type(value) is tuple and value and type(value[-1]) is tuple:
                    run.at = at
                    run.check_tuple(value)
                second = stack.pop()
                stack[-1] = (stack[-1], second, value)
            elif op == 0x4E:  # NONE
                stack.append(None)
            elif op == 0x8C:  # SHORT_BINUNICODE
                end = pos + 1 + data[pos]
                if end > size:
                    raise EOFError
                text = str(data[pos + 1 : end], "utf-8")
                pos = end
                stack.append(text)
                if text == stop_before and len(outer) == 1 and len(stack) % 2:
                    stack.pop()
                    return run.finish(outer.pop(), stack), pos
            elif op == 0x4D:  # BININT2
                stack.append(data[pos] | data[pos + 1] << 8)
                pos += 2
            elif op == 0x89:  # NEWFALSE
                stack.append(False)
            elif op == 0x74:  # TUPLE
                value = tuple(stack)
                stack = outer.pop()
                if len(value) > max_stack:
                    run.at = at
                    run.unsafe(f"a tuple of {len(value)} elements; the limit is {max_stack}")
                if value and type(value[-1]) is tuple:
                    run.at = at
                    run.check_tuple(value)
                stack.append(value)
            elif op == 0x4A:  # BININT
                stack.append(_I32(data, pos)[0])
                pos += 4
            elif op == 0x58:  # BINUNICODE
                end = pos + 4 + _U32(data, pos)[0]
                run.at = at
                value, pos = run.text(pos + 4, end - pos - 4)
                stack.append(value)
            elif op == 0x63:  # GLOBAL
                run.at = at
                module, pos = run.line(pos)
                attribute, pos = run.line(pos)
                stack.append(name(module, attribute))
            elif op == 0x93:  # STACK_GLOBAL
                value = stack.pop()
                run.at = at
                stack[-1] = name(stack[-1], value)
            elif op == 0x51:  # BINPERSID
                run.at = at
                stack[-1] = run.resolve(stack[-1])
            elif op == 0x65:  # APPENDS
                items = stack
                stack = outer.pop()
                run.at = at
                run.extend(stack[-1], items)
            elif op == 0x61:  # APPEND
                value = stack.pop()
                run.at = at
                run.extend(stack[-1], [value])
            elif op == 0x73:  # SETITEM
                value = stack.pop()
                key = stack.pop()
                run.at = at
                run.set_pairs(stack[-1], [key, value])
            elif op == 0x88:  # NEWTRUE
                stack.append(True)
            elif op == 0x47:  # BINFLOAT
                stack.append(_F64(data, pos)[0])
                pos += 8
            elif op == 0x2E:  # STOP
                return stack[-1], pos
            else:
                run.at = at
                stack, pos = run.rare(op, pos, stack, outer)
    except BaseException:
        run.at = at
        raise
    run.at = at
    return run.unsafe(f"more than {limits.opcodes} opcodes")
