"""The small expression language of the data files: arithmetic, comparison and choice over named values.

Family and layout files say `pair = "head_dim // 2"` or `when = "qkv_bias and not tied"`. Expressions are parsed once
into Python's own syntax tree, checked node by node against an allow-list, and evaluated by walking that tree:
nothing is compiled or called except the functions listed here. A list may be made from another one:
`[head_dim * n for n in heads if n]`.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import operator
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from crossdock.errors import ConfigError

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


def _indices_where(flags: Any) -> tuple[int, ...]:
    """Indices of the true entries of a list of flags."""
    return tuple(i for i, flag in enumerate(flags) if flag)


def _sparse(count: int, step: int, excluded: Any = (), phase: int = 1) -> tuple[int, ...]:
    """Layers i of `count` with (i + phase) divisible by `step`, without the excluded ones."""
    without = set(excluded)
    return tuple(i for i in _counted(count) if (i + phase) % step == 0 and i not in without)


def _counted(*bounds: int) -> range:
    """range(...) that is no longer than a model has layers: sizes come from files that may lie."""
    numbers = range(*bounds)
    if len(numbers) > _LONGEST:
        raise ArithmeticError(f"{len(numbers)} is beyond any count of a model")
    return numbers


def _without(count: int, excluded: Any) -> tuple[int, ...]:
    """0 to count - 1 without the excluded ones."""
    gone = set(excluded)
    return tuple(i for i in _counted(count) if i not in gone)


def _parsed(text: str) -> Any:
    """What a JSON text holds. Raises ValueError when it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _cycle(pattern: Any, count: int) -> tuple[Any, ...]:
    """`count` values, the pattern over and over."""
    return tuple(pattern[i % len(pattern)] for i in _counted(count))


def _not_text(value: Any) -> Any:
    """A text in the place of a number is a mistake, whatever its digits say."""
    if isinstance(value, str):
        raise TypeError(f"{value[:40]!r} is a text, not a number")
    return value


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "int": lambda value: int(_not_text(value)),
    "float": lambda value: float(_not_text(value)),
    "bool": bool,
    "str": str,
    "len": len,
    "min": min,
    "max": max,
    "tuple": tuple,
    "list": list,
    "json": _parsed,
    "distinct": lambda values: tuple(dict.fromkeys(values)),
    "isinstance_list": lambda v: isinstance(v, list | tuple),
    "isinstance_str": lambda v: isinstance(v, str),
    "range": lambda *bounds: tuple(_counted(*bounds)),
    "every": lambda n, step, first=0: tuple(_counted(first, n, step)),
    "where": _indices_where,
    "without": _without,
    "sparse": _sparse,
    "cycle": _cycle,
    "get": lambda mapping, key, default=None: (mapping or {}).get(key, default),
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
    "round": round,
}
_LONGEST = 100_000
_LIMIT = 1 << 40  # no config number is larger; keeps a hostile config from building huge integers


# what evaluating an expression over keys of any kind may raise
FAILURES = (KeyError, TypeError, ArithmeticError, ValueError, IndexError, AttributeError)


class Expression:
    """A parsed expression. `evaluate(values)` gives its value; `names` lists the identifiers that it reads.

    constants  names that mean the same whatever the values are: the data files' own tables
    """

    __slots__ = ("_constants", "_tree", "names", "text")

    def __init__(self, text: str, where: str = "", constants: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise ConfigError(f"expression {text!r} does not parse: {error.msg}", where=where) from None
        nodes = list(ast.walk(self._tree))
        _check(nodes, text, where)
        words = [node for node in nodes if isinstance(node, ast.Name)]
        bound = {word.id for word in words if isinstance(word.ctx, ast.Store)}  # by a loop, for itself
        words_read = frozenset(word.id for word in words) - bound - FUNCTIONS.keys()
        self.names = words_read - constants.keys()
        self._constants = {name: constants[name] for name in sorted(words_read & constants.keys())}

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The value. Raises KeyError for a name that `values` lacks, ArithmeticError and TypeError for bad ones."""
        return _value(self._tree, ChainMap(self._constants, values) if self._constants else values)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


@functools.cache
def expression(text: str, where: str = "") -> Expression:
    """Parse `text`, once per text."""
    return Expression(text, where)


def _check(nodes: Iterable[ast.AST], text: str, where: str) -> None:
    allowed = (
        ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.Name, ast.Call,
        ast.Tuple, ast.List, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context, ast.Subscript,
        ast.ListComp, ast.comprehension,
    )  # fmt: skip
    for node in nodes:
        known = isinstance(node, allowed)
        if isinstance(node, ast.BinOp):
            known = type(node.op) in _BINARY
        if isinstance(node, ast.ListComp):
            known = len(node.generators) == 1 and isinstance(node.generators[0].target, ast.Name)
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
        if not known:
            raise ConfigError(f"expression {text!r} uses {type(node).__name__}, which is not allowed", where=where)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            first, second = _value(left, values), _value(right, values)
            if isinstance(op, ast.Mult) and not all(isinstance(v, int | float) for v in (first, second)):
                raise TypeError("only numbers are multiplied")  # a text times a number could be of any size
            result = _BINARY[type(op)](first, second)
            if isinstance(result, int) and abs(result) > _LIMIT:
                raise ArithmeticError(f"{result} is beyond any size of a model")
            return result
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, values)
        case ast.BoolOp(op=ast.And(), values=parts):
            result = True
            for part in parts:
                result = _value(part, values)
                if not result:
                    return result
            return result
        case ast.BoolOp(values=parts):
            result = False
            for part in parts:
                result = _value(part, values)
                if result:
                    return result
            return result
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            current = _value(left, values)
            for comparison, right in zip(ops, comparators, strict=True):
                following = _value(right, values)
                if not _COMPARE[type(comparison)](current, following):
                    return False
                current = following
            return True
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, values) else orelse, values)
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](*(_value(arg, values) for arg in args))
        case ast.Subscript(value=container, slice=index):
            return _value(container, values)[_value(index, values)]
        case ast.Tuple(elts=items):
            return tuple(_value(item, values) for item in items)
        case ast.List(elts=items):
            return [_value(item, values) for item in items]
        case ast.ListComp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=over, ifs=tests)]):
            several = _value(over, values)
            if len(several) > _LONGEST:
                raise ArithmeticError(f"{len(several)} is beyond any count of a model")
            scopes = (ChainMap({name: one}, values) for one in several)  # type: ignore[arg-type]
            return [_value(item, scope) for scope in scopes if all(_value(test, scope) for test in tests)]
        case _:
            raise AssertionError(f"unchecked node {type(node).__name__}")
