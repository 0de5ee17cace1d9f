"""Names to codecs: crossdock's own, then those that other packages register under the entry point
"crossdock.codecs".

An entry point's name is the codec's name and its object a `Codec`. It cannot replace one of crossdock's
own, and is loaded only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from crossdock.codecs.cast import PLAIN
from crossdock.codecs.codec import Codec
from crossdock.errors import EnvironmentProblem, UsageError
from crossdock.plugins import registered
from crossdock.wording import nearest

ENTRY_POINTS = "crossdock.codecs"

# crossdock's own, and what makes them: a module is imported for the first of its codecs that is asked for
_OWN: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(PLAIN, "cast:plain")
    | dict.fromkeys(("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"), "ggml_legacy:legacy")
    | dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"), "ggml_k:super_blocks")
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "bf16": "bfloat16",
        "f16": "float16",
        "fp16": "float16",
        "half": "float16",
        "f32": "float32",
        "fp32": "float32",
        "float": "float32",
        "single": "float32",
        "f64": "float64",
        "fp64": "float64",
        "double": "float64",
        "fp8": "float8_e4m3fn",
        "e4m3": "float8_e4m3fn",
        "e4m3fn": "float8_e4m3fn",
        "f8_e4m3": "float8_e4m3fn",
        "float8_e4m3": "float8_e4m3fn",
        "fp8_e4m3": "float8_e4m3fn",
        "e5m2": "float8_e5m2",
        "f8_e5m2": "float8_e5m2",
        "fp8_e5m2": "float8_e5m2",
        "e8m0": "float8_e8m0fnu",
        "f8_e8m0": "float8_e8m0fnu",
        "i8": "int8",
        "i16": "int16",
        "i32": "int32",
        "int": "int32",
        "i64": "int64",
        "long": "int64",
        "u8": "uint8",
        "byte": "uint8",
        "u16": "uint16",
        "u32": "uint32",
        "u64": "uint64",
    }
)


def get(name: str) -> Codec:
    """The codec called `name`. Raises UsageError, and EnvironmentProblem for a broken plug-in."""
    canonical = canonical_name(name)
    return _make(canonical) if canonical in _OWN else _load(canonical)


def names() -> tuple[str, ...]:
    """Every canonical name: crossdock's own, then registered ones in alphabetical order."""
    return (*_OWN, *sorted(_registered() - _OWN.keys()))


def canonical_name(text: str, more: Iterable[str] = ()) -> str:
    """The one name of what a user or a file calls "BF16", "torch.bfloat16", "Q8_0", ... Raises UsageError.

    more  what else somebody who mistypes may have meant
    """
    name = text.strip().lower().removeprefix("torch.").replace("-", "_")
    name = ALIASES.get(name, name)
    if name in _OWN or name in _registered():
        return name
    near = nearest(name, dict.fromkeys([*names(), *ALIASES, *more]), 3)
    raise UsageError(
        f"unknown dtype or quantisation {text[:80]!r}",
        got=repr(text[:80]),
        expected=" or ".join(near) if near else "one of " + ", ".join(names()),
    )


@cache
def _make(name: str) -> Codec:
    module, _, function = _OWN[name].partition(":")
    codec: Codec = getattr(import_module(f"crossdock.codecs.{module}"), function)(name)
    return codec


@cache
def _registered() -> frozenset[str]:
    return frozenset(point.name for point in registered(ENTRY_POINTS))


@cache
def _load(name: str) -> Codec:
    point = next(point for point in registered(ENTRY_POINTS) if point.name == name)
    try:
        codec: Codec = point.load()
        named = codec.name
    except Exception as error:
        raise EnvironmentProblem(
            f"the codec plug-in {name!r} cannot be loaded: {error}",
            where=point.value,
            fix="reinstall that package",
        ) from error
    lacking = sorted(fact for fact in vars(Codec) if not fact.startswith("_") and not hasattr(codec, fact))
    if lacking:
        raise EnvironmentProblem(
            f"the codec plug-in {name!r} lacks {', '.join(lacking)}",
            where=point.value,
            fix="crossdock.codecs.codec.Codec lists what a codec says of itself",
        )
    if named != name:
        raise EnvironmentProblem(
            "a codec plug-in is registered under another name than its own",
            where=point.value,
            expected=name,
            got=named,
        )
    return codec
