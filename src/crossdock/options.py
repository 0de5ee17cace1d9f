"""Options as data: a frozen dataclass whose fields say how their text is read and what their help is.

Command line, keyword arguments of the library and help text are made from these fields, so that an option is one field
in one file. What a text means is decided here, once for the command line and for Python: sizes may be "64MiB" in both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from crossdock.errors import Problem, UsageError
from crossdock.wording import nearest

Read = Callable[[Any], Any]
T = TypeVar("T")

UNITS: Mapping[str, int] = MappingProxyType(
    {"": 1} | {p: 1000**n for n, p in enumerate("kmgt", 1)} | {f"{p}i": 1024**n for n, p in enumerate("kmgt", 1)}
)
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) *((?:[kmgt]i?)?)b?", re.IGNORECASE | re.ASCII)
LARGEST: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Option:
    """One option, without its value.

    read      text or value -> value; raises UsageError with one sentence
    metavar   what stands for the value in the help text; "": the option is a flag
    also      other names on the command line ("-q"), in the order of the help text
    heading   under which the help text lists it
    default   the default, as the help text shows it; "": the help says it itself
    choices   all values, where there is a list that can be shown ("list" instead of a value shows it)
    many      the command line takes it any number of times
    replayed  an output does not show it, so `verify` has it too
    """

    name: str
    help: str
    read: Read
    metavar: str
    also: tuple[str, ...]
    heading: str
    default: str
    choices: Callable[[], Sequence[str]] | None
    many: bool
    replayed: bool

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return "--" + self.name.replace("_", "-")


def option(
    default: Any,
    read: Read,
    help: str,
    metavar: str = "",
    *,
    heading: str = "Target",
    also: tuple[str, ...] = (),
    **more: Any,
) -> Any:
    """A field of a dataclass of options. `default` may be a text for `read`; more: `choices`, `many`, `replayed`."""
    shown = default if isinstance(default, str) else ""
    known = {"default": shown, "choices": None, "many": False, "replayed": False, **more}
    value = read(default) if isinstance(default, str) else default
    about = {"help": help, "read": read, "metavar": metavar, "also": also, "heading": heading, **known}
    return field(default=value, metadata={"option": about})


def options_of(kind: type[Any]) -> dict[str, Option]:
    """Name -> option, for every field of the dataclass `kind` that is one, in their order."""
    return {one.name: Option(one.name, **one.metadata["option"]) for one in fields(kind) if "option" in one.metadata}


def made(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass `kind` from texts or values of its fields. Raises UsageError with every value that is wrong."""
    known, read, problems = options_of(kind), {}, []
    takes = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for name in values.keys() - set(takes):
        problems.append(Problem(f"unknown option {name}", expected=" or ".join(nearest(name, takes))))
    for name, value in values.items():
        try:
            read[name] = value if name not in known or value is None else known[name].read(value)
        except UsageError as error:
            problems += [Problem(one.what, known[name].flag, fix=one.fix) for one in error.problems]
    if problems:
        raise UsageError(problems)
    return kind(**read)


def split(kind: type[T], values: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """The dataclass `kind` from those of `values` that it has fields for, and the other values. Raises UsageError."""
    own = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    rest = {name: value for name, value in values.items() if name not in own}
    return made(kind, {name: value for name, value in values.items() if name in own}), rest


def size(value: str | int) -> int:
    """Bytes: "5GB" is 5 * 10**9, "256MiB" is 256 * 2**20."""
    text = str(value)
    match = SIZE.fullmatch(text.strip()) if len(text) < 40 and not isinstance(value, bool) else None
    out = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if match and not 0 < out <= LARGEST:
        raise UsageError(f"{text} is too {'large' if out else 'small'}")
    if not match:
        raise UsageError(f"{text!r} is not a size; write it like 5GB, 500MB or 2GiB")
    return out


def whole(value: str | int) -> int:
    """Read a whole number without a sign."""
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise UsageError(f"{text!r} is not a whole number")
    return int(text)


def positive(value: str | int) -> int:
    """A number of at least one."""
    text = str(value)
    number = 0 if text.removeprefix("-").isdecimal() and text.startswith("-") else whole(value)
    if number < 1:
        raise UsageError(f"{text} is too small; it must be at least 1")
    return number


def flag(value: bool) -> bool:
    """Read True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither True nor False")
    return value


def path(value: str | os.PathLike[str]) -> Path:
    """A path of the file system."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{value!r} is not a path")
    return Path(value)


def text(value: str) -> str:
    """Read any text."""
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a text")
    return value


def one_of(*known: str) -> Read:
    """Reads one of a few words."""

    def read(value: str) -> str:
        if value not in known:
            raise UsageError(f"{value!r} is not one of {', '.join(map(repr, known))}")
        return value

    return read


def some_of(*known: str) -> Read:
    """Reads any number of a few words, as a frozenset."""
    one = one_of(*known)

    def read(value: str | Sequence[str] | frozenset[str]) -> frozenset[str]:
        return frozenset(map(one, (value,) if isinstance(value, str) else value))

    return read
