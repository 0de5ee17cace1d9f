"""Whether a call that a pickle asks for is one that does nothing."""

from __future__ import annotations

from crossdock.scan.harmless import CALLER, CONSTANT, LOADER, NEW, TYPE, Name
from crossdock.scan.values import Items, Text, Tuple
from crossdock.unpickle.values import printable


def call_problem(target: object, args: object, op: str, keywords: list[object]) -> str:
    """Why a loader's call of `target` is a finding, as a sentence; "" for a call that is known to do nothing.

    args      the argument tuple as far as it is known
    keywords  of NEWOBJ_EX
    """
    shown = _shown(args)
    if not isinstance(target, Name):
        return f"a loader would call a value made while loading{shown}"
    if target.use in ("", CONSTANT, TYPE):
        return f"a loader would call {target.qualified}{shown}"
    if not isinstance(args, Tuple) or (keywords and not (isinstance(keywords[0], Items) and not keywords[0].count)):
        return f"a loader would call {target.qualified} with arguments built while loading"
    if target.use == NEW and (op == "REDUCE" or args.items):
        return f"a loader would call {target.qualified}{shown}, which is known to be harmless only without arguments"
    for index, argument in enumerate(args.items):
        if isinstance(argument, str | Text) and argument not in target.texts.get(str(index), (argument,)):
            return f"a loader would call {target.qualified}{shown} with a text for which it is not known to be harmless"
        for name in _names(argument):
            if name.use == CONSTANT or target.takes(index, name, direct=name is argument):
                continue
            return f"a loader would call {target.qualified} with {name.qualified}, which it may call"
    if target.use == LOADER and not (len(args.items) == 1 and isinstance(args.items[0], Text)):
        return f"a loader would unpickle bytes built while loading ({target.qualified})"
    if target.use == CALLER and not _is_whole(args):
        return f"a loader would call {target.qualified} with more arguments than were analysed"
    return ""


def _names(value: object) -> list[Name]:
    """Every name in an argument, also inside its tuples: these nest no deeper than the walk lets them."""
    found: list[Name] = []
    waiting = [value]
    while waiting and len(found) < 64:
        one = waiting.pop()
        if isinstance(one, Name):
            found.append(one)
        elif isinstance(one, Tuple):
            waiting.extend(item for item in one.items if isinstance(item, Name | Tuple))
            if len(waiting) > 4096:
                break
    return found


def _is_whole(value: object) -> bool:
    """Whether all that a call is given was looked at."""
    return not isinstance(value, Tuple) or (value.whole and all(_is_whole(item) for item in value.items))


def _shown(args: object) -> str:
    if isinstance(args, Tuple):
        for item in args.items:
            inner = next((one for one in item.items if isinstance(one, str)), None) if isinstance(item, Tuple) else item
            if isinstance(inner, str) and inner:
                return f"({printable(inner, 80)!r})"
            if isinstance(inner, Text):
                break
    return "(...)"
