"""The optimizer block at the end of llama.cpp's legacy training files: Adam or L-BFGS, versions 0, 1 and "1a".

Version 1 does not say which optimizer it holds: both readings are tried, and only one ends where the file ends. Reads
no tensor data. Facts: llama.cpp, write_opt_context of train-text-from-scratch.cpp at 43033b7 (0), d395b19 (1) and
e3a5e73 (1a: the number 1 before the parameters of version 0); the names are those of the GGUF trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from crossdock.errors import FormatError
from crossdock.formats.ggml_training.records import Record, Words

Kind = Literal["adam", "lbfgs"]
_PARAMETERS = 96  # sizeof(struct ggml_opt_params) then: type at 0, past at 8, lbfgs.m at 60

# the name in ggml_opt_context -> the tensor's name in GGUF, "" where the official conversion leaves it out
NAMES: Mapping[Kind, Mapping[str, str]] = MappingProxyType({
    "adam": {
        "x": "", "g1": "", "g2": "", "m": "first_moments", "v": "second_moments", "mh": "", "vh": "",
        "pf": "past_loss_values",
    },
    "lbfgs": {
        "x": "current_parameters", "xp": "previous_parameters", "g": "current_gradients", "gp": "previous_gradients",
        "d": "search_direction", "pf": "past_loss_values", "lmal": "memory_alpha", "lmys": "memory_ys",
        "lms": "memory_s", "lmy": "memory_y",
    },
})  # fmt: skip
_OLD_ADAM = ("x", "g1", "g2", "m", "v", "mh", "vh", "pf")
_NEW_ADAM = ("m", "v", "pf")
_LBFGS = ("x", "xp", "g", "gp", "d", "pf", "lmal", "lmys", "lms", "lmy")
_TAILS: Mapping[Kind, tuple[str, tuple[str, ...]]] = MappingProxyType({
    "adam": ("ffi", ("best_loss", "previous_loss", "no_improvement_count")),
    "lbfgs": (
        "ffiiii",
        ("best_loss", "line_search_step", "line_search_j", "line_search_k", "line_search_end", "no_improvement_count"),
    ),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What the block holds. version: "0", "1", "1a"; tensors by their names in ggml_opt_context, NULL ones left out.

    numbers  the tail, by the names that GGUF gives them; memory: lbfgs.m
    """

    version: str
    kind: Kind
    past: int
    memory: int
    parameters: int
    iteration: int
    just_initialized: bool
    tensors: Mapping[str, Record]
    numbers: Mapping[str, Any]


def read_optimizer(words: Words, parameters: int) -> Optimizer:
    """The block at `words`, up to the end of the file, for a model of so many `parameters`. Raises FormatError."""
    begin = words.at
    (version,) = words.integers("I", "the optimizer's version")
    if version == 0:
        head = _old_head(words, parameters)
        return _read(words, head, "0", _OLD_ADAM if head.kind == "adam" else _LBFGS)
    if version != 1:
        raise words.error("an optimizer block of unknown version", begin, expected="0 or 1", got=f"{version:,}")
    readings = []
    errors: list[tuple[int, FormatError]] = []
    for name, heads, names in (
        ("1", _new_heads, _NEW_ADAM), ("1a", _old_heads, _NEW_ADAM), ("1a", _old_heads, _OLD_ADAM),
    ):  # fmt: skip
        place = words.moved(words.at)
        try:
            found = heads(place, parameters)
        except FormatError as error:
            errors.append((place.at if name == "1" else 0, error))
            continue
        for head in found:
            trial = place.moved(place.at)
            try:
                readings.append(_read(trial, head, name, names if head.kind == "adam" else _LBFGS))
            except FormatError as error:
                errors.append((trial.at, error))
    if not readings:
        raise max(errors, key=lambda pair: pair[0])[1]
    return readings[0]


@dataclass(frozen=True, slots=True)
class _Head:
    kind: Kind
    past: int
    memory: int
    parameters: int
    iteration: int
    just_initialized: bool


def _old_head(words: Words, parameters: int) -> _Head:
    begin = words.at
    kind, _, past = words.integers("iii", "the optimizer's parameters")
    words.moved(begin).take(_PARAMETERS, "the optimizer's parameters")
    (memory,) = words.moved(begin + 60).integers("i", "the optimizer's parameters")
    words.at = begin + _PARAMETERS
    if kind not in (0, 1):
        raise words.error("an optimizer of unknown type", begin, expected="0 (Adam) or 1 (L-BFGS)", got=f"{kind:,}")
    return _counted(words, begin, "adam" if kind == 0 else "lbfgs", past, memory if kind == 1 else 0, parameters)


def _old_heads(words: Words, parameters: int) -> tuple[_Head, ...]:
    return (_old_head(words, parameters),)


def _new_heads(words: Words, parameters: int) -> tuple[_Head, ...]:
    begin = words.at
    past, memory = words.integers("ii", "the optimizer's parameters")
    adam = _counted(words, begin, "adam", past, 0, parameters)
    if not 0 < memory <= words.size:
        return (adam,)
    lbfgs = _Head("lbfgs", past, memory, parameters, adam.iteration, adam.just_initialized)
    return (adam, lbfgs)


def _counted(words: Words, begin: int, kind: Kind, past: int, memory: int, parameters: int) -> _Head:
    at = words.at
    count, iteration, fresh = words.integers("qiI", "the optimizer's counts")
    if count != parameters:
        raise words.error(
            "the optimizer state is for a different number of parameters",
            at,
            expected=f"{parameters:,}, which the tensors have",
            got=f"{count:,}",
            cause="a damaged file",
        )
    if not 0 <= past <= words.size or (kind == "lbfgs" and not 0 < memory <= words.size) or iteration < 0:
        raise words.error(
            "impossible optimizer counters",
            begin,
            got=f"past {past:,}, memory {memory:,}, iteration {iteration:,}",
            cause="a damaged file",
        )
    return _Head(kind, past, memory, parameters, iteration, bool(fresh))


def _read(words: Words, head: _Head, version: str, names: tuple[str, ...]) -> Optimizer:
    past: tuple[int, ...] = (head.past,) if head.past else ()
    shapes: dict[str, tuple[int, ...]] = {"pf": past, "lmal": (head.memory,), "lmys": (head.memory,)}
    shapes |= dict.fromkeys(("lms", "lmy"), (head.parameters, head.memory))
    tensors: dict[str, Record] = {}
    for name in names:
        ne = shapes.get(name, (head.parameters,))
        record = words.record(f"{head.kind}.{name}", ne)
        if ne:
            tensors[name] = record
    code, keys = _TAILS[head.kind]
    numbers = dict(zip(keys, words.unpack(code, "the optimizer's last numbers"), strict=True))
    if words.at != words.size:
        raise words.error(
            "unexpected data after the end of the checkpoint",
            expected=f"a file of {words.at:,} bytes",
            got=f"{words.size:,}",
            cause="a damaged file, or two files joined together",
        )
    return Optimizer(
        version, head.kind, head.past, head.memory, head.parameters, head.iteration, head.just_initialized,
        tensors, numbers,
    )  # fmt: skip
