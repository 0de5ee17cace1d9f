"""How values are stored: `stored = map(canonical)`, as steps that have an inverse each. Numbers only, no bytes.

A rule of a layout says it with `map`, `scale` and `offset`, in this order: stored = map(x) * scale + offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Step(NamedTuple):
    """One function of a value: exp, log, negate, or multiply, divide, add with `number`; of a whole tensor: centre."""

    kind: str
    number: float = 0.0


Steps = tuple[Step, ...]

# what a rule may say as `map`: what is stored, of the canonical value x
MAPS: Mapping[str, Steps] = MappingProxyType({
    "exp": (Step("exp"),),
    "-exp": (Step("exp"), Step("negate")),
    "centred": (Step("centre"),),  # less the mean of the tensor, which changes no order of its values
})  # fmt: skip
_INVERSE = MappingProxyType(
    {"exp": "log", "log": "exp", "negate": "negate", "multiply": "divide", "divide": "multiply", "add": "add"}
)


def storing(map_name: str, factors: tuple[float, ...], offset: float) -> Steps:
    """From the canonical value to the stored one: `map_name` of MAPS or "", times each factor, plus `offset`."""
    scaled = tuple(Step("multiply", factor) for factor in factors if factor != 1)
    added = (Step("add", offset),) if offset else ()
    return (*MAPS.get(map_name, ()), *scaled, *added)


def inverse(steps: Steps) -> Steps:
    """The steps that lead back. What was centred stays so: the mean is gone, and means nothing."""
    return tuple(_back(step) for step in reversed(steps) if step.kind != "centre")


def between(source: Steps, target: Steps) -> Steps:
    """From what `source` stores to what `target` stores; nothing where both store the same, so that bytes stay."""
    if source == target:
        return ()
    out: list[Step] = []
    for step in (*inverse(source), *target):
        if out and out[-1].kind == step.kind == "add":
            total = step.number + out.pop().number
            out += [Step("add", total)] if total else []
        elif out and _back(out[-1]) == step:
            out.pop()
        else:
            out.append(step)
    return tuple(out)


def sum_alone(steps: Steps) -> float | None:
    """The number that `steps` add when they do nothing else; None where they do."""
    if not steps:
        return 0.0
    return steps[0].number if len(steps) == 1 and steps[0].kind == "add" else None


def factor(steps: Steps) -> float | None:
    """By what a difference of two values grows on the way; None where that depends on the values."""
    number = 1.0
    for kind, by in steps:
        if kind in ("exp", "log", "centre"):
            return None
        number *= {"multiply": by, "divide": 1 / by if by else 0.0, "negate": -1.0}.get(kind, 1.0)
    return number


def shown(steps: Steps) -> str:
    """The steps as people write them: "-exp(x)", "log(-x)", "x * 0.5"."""
    text = "x"
    for kind, number in steps:
        if kind in ("exp", "log"):
            text = f"{kind}({text})"
        elif kind == "negate":
            text = f"-{text}"
        elif kind == "centre":
            text = f"{text} - mean({text})"
        else:
            sign = {"multiply": "*", "divide": "/", "add": "+"}[kind]
            text = f"{text} {sign} {number:g}"
    return text


def _back(step: Step) -> Step:
    return Step(_INVERSE[step.kind], 0.0 - step.number if step.kind == "add" else step.number)
