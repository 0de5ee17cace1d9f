"""Run in a process of its own: call every name of `data/harmless.toml` that is installed, with everything that a pickle
may hand it, and tell which of them did something.

Usage: harmless_run.py FOLDER; prints a JSON line for each name that acted, could not be found, or is found elsewhere
than in its module, and one line {"tried": N} at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from crossdock.scan.harmless import CALL, CALLER, CONSTANT, NEW, Name, names

# events of the audit hook that are effects; "import" of what is there already is none
EFFECTS = (
    "open", "os.", "subprocess.", "socket.", "shutil.", "exec", "ctypes.dlopen", "import", "urllib.", "tempfile.",
    "webbrowser.", "http.", "ftplib.", "smtplib.", "mmap.", "pty.", "signal.", "sys.settrace", "code.__new__",
)  # fmt: skip
FORMER = ("__builtin__", "copy_reg", "numpy.core.", "numpy.ma.core")  # as Python 2 and numpy 1 pickle them
seen: list[str] = []
watching = False


def hook(event: str, args: tuple[Any, ...]) -> None:
    if watching and event.startswith(EFFECTS):
        if event == "import" and (args[0] in sys.modules or args[0].startswith(("_", "encodings."))):
            return
        seen.append(f"{event} {str(args)[:100]}")


def canary(*args: object, **kwargs: object) -> object:
    seen.append("called what it was given")
    return None


class Canary:
    """A class whose making is an effect."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        seen.append("made what it was given")


def arguments(folder: str, given: list[object]) -> Iterator[tuple[object, ...]]:
    """Argument tuples as a pickle may make them: callables (where the name is not held back from them) and data."""
    path = os.path.join(folder, "effect")
    data: list[object] = [
        None,
        1,
        2.5,
        True,
        "text",
        path,
        b"bytes",
        (),
        (1, 2),
        [],
        [1],
        {},
        {"a": 1},
        {path: path},
        1j,
    ]
    containers = [[one, *data] for one in given] + [(one,) for one in given] + [{"a": one} for one in given]
    every = data + given + containers + [{one: one for one in given}]
    yield ()
    yield from itertools.product(every, repeat=1)
    yield from itertools.product(every, repeat=2)
    for count in range(3, 9):
        for one in every:
            yield (one,) * count
            yield (one, *data)[:count]
            yield (*data[: count - 1], one)


STATES: list[Callable[[object], object]] = [
    lambda one: {"a": one},
    lambda one: (None, {"a": one}),
    lambda one: ({"a": one}, {"b": one}),
    lambda one: (one, one, one, one),
    lambda one: [one],
    lambda one: one,
]


def quietly(do: Callable[[], object]) -> object:
    global watching
    watching = True
    try:
        return do()
    except BaseException:
        return None
    finally:
        watching = False


def fill(made: object) -> None:
    """What APPEND, SETITEM and BUILD would do with what a name gave."""
    setstate = getattr(made, "__setstate__", None)
    for given in (canary, Canary, "text", 1):
        for state in STATES:
            value = state(given)
            if setstate is not None:
                quietly(lambda value=value: setstate(value))  # type: ignore[misc]
            elif isinstance(value, dict):
                quietly(lambda value=value: made.__dict__.update(value))  # type: ignore[misc]
        for attribute in [one for one in dir(type(made)) if not one.startswith("__")]:
            if hasattr(getattr(type(made), attribute, None), "__set__"):
                quietly(lambda attribute=attribute, given=given: setattr(made, attribute, given))  # type: ignore[misc]
        quietly(lambda given=given: made.append(given))  # type: ignore[attr-defined,misc]
        quietly(lambda given=given: made.extend([given]))  # type: ignore[attr-defined,misc]
        quietly(lambda given=given: made.__setitem__(given, given))  # type: ignore[attr-defined,misc]
        quietly(lambda given=given: made.__setitem__("a", given))  # type: ignore[attr-defined,misc]
    quietly(lambda: hash(made))
    quietly(lambda: made == 1)


def attempt(name: Name, thing: Any, folder: str, tell: Callable[[], object]) -> None:
    """Everything that a pickle may do with `thing`, as its use allows."""
    quietly(lambda: thing.__new__(thing) if isinstance(thing, type) else None)
    if name.use == NEW:
        fill(quietly(lambda: thing.__new__(thing)))
        return
    # what calls its arguments is never given them: `takes` and the scan hold it to names of the list
    given: list[object] = [canary, Canary] if name.use == CALL else []
    filled = 0
    for args in arguments(folder, given):
        made = quietly(lambda args=args: thing(*args))  # type: ignore[misc]
        if isinstance(thing, type):
            quietly(lambda args=args: thing.__new__(thing, *args))  # type: ignore[misc]
        if made is not None and filled < 3:
            filled += 1
            fill(made)
        if seen:
            tell()
            return


def in_a_child(name: Name, thing: Any, folder: str) -> str:
    """What `thing` did, in a process of its own: a C function may crash on arguments of the wrong type, which is no
    effect that anybody can use."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        if name.use == CONSTANT and callable(thing):
            seen.append("can be called")
        if name.use in (NEW, CALL, CALLER):
            attempt(name, thing, folder, lambda: os.write(write, json.dumps(sorted(set(seen))[:3]).encode()))
        if isinstance(getattr(thing, "__del__", None), FunctionType):
            seen.append("has a __del__")
        os.write(write, json.dumps(sorted(set(seen))[:3]).encode() if seen else b"")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        said = told.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) not in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE):
        said += f" ended by signal {os.WTERMSIG(status)}"
    return said


def elsewhere(thing: Any, name: Name) -> str:
    """A sentence when the name is not where its thing is at home, and is not how pickles write it."""
    home = getattr(thing, "__module__", None)
    if name.use == CONSTANT or home in (None, name.module) or name.module.startswith(FORMER):
        return ""
    return f"is at home in {home}"


def main() -> None:
    folder = sys.argv[1]
    os.chdir(folder)
    warnings.simplefilter("ignore")
    renamed = {"__builtin__": "builtins", "copy_reg": "copyreg"}
    python2 = {"xrange": "range", "long": "int", "unicode": "str"}
    found: list[tuple[Name, Any]] = []
    for name in names().values():
        with contextlib.suppress(ImportError):
            module = importlib.import_module(renamed.get(name.module, name.module))
            attribute = python2.get(name.name, name.name) if name.module in renamed else name.name
            if hasattr(module, attribute):
                found.append((name, getattr(module, attribute)))
            elif not name.module.startswith("megatron."):  # whose versions differ
                print(json.dumps({"name": name.qualified, "said": "does not exist"}))
    sys.addaudithook(hook)
    for name, thing in found:
        said = elsewhere(thing, name) or in_a_child(name, thing, folder)
        if said:
            print(json.dumps({"name": name.qualified, "said": said}), flush=True)
    print(json.dumps({"tried": len(found), "left": sorted(os.listdir("."))}))
    sys.stdout.flush()
    os._exit(0)


main()
