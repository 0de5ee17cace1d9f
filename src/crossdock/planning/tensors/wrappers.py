"""What programs put around a model's names: taken off by the names that remain, one rule for every kind of file.

DDP, FSDP, torch.compile, Lightning, Composer, PEFT and training loops save the same tensors as `module.NAME`,
`_orig_mod.NAME`, `state.model.NAME`, `base_model.model.NAME` and so on. The names of all families of the format say
where a model's own name begins. A base class that was saved without its usual prefix (`layers.0...` for
`model.layers.0...`) is read as transformers reads it (`base_model_prefix`, 5.24). What stands beside the model, a step
or the state of a random number generator, is left out by name. Changes names only; reads no bytes.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from crossdock.errors import FormatError
from crossdock.formats.stored import Source, StoredTensor
from crossdock.layout.rules import layout, stored_names
from crossdock.model.families import families

INSIDE: Final = re.compile(r"(?:(?<=\.)|\A)(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
PLACE: Final = re.compile(r"\{[^}]*\}")
DEEPEST: Final = 12  # parts of a name that may be wrappers
COUNTERS: Final = ("int8", "int16", "int32", "int64", "uint8", "bool")


def unwrapped(source: Source, format_name: str) -> Source:
    """`source` under the model's own names; what was taken off is a note, what stands beside the model is skipped.

    Raises FormatError when two tensors would have one name.
    """
    names = [name for _, name in source.tensors]
    plain = {name: INSIDE.sub("", name) for name in names}
    if all(plain[name] == name for name in names) and _fits(names, _usual(format_name)):
        return _without_strays(source, _usual(format_name), "")
    known = _known(format_name)
    prefix, put = _around(plain.values(), known)
    inside = {name for name in names if plain[name].startswith(prefix)} if prefix else set(names)
    new = {name: put + plain[name][len(prefix) :] if name in inside else plain[name] for name in names}
    if put:  # of a base class, only what has its names; a head beside it has its own
        new = {name: text if _key(text) in known or _key(plain[name]) not in known else plain[name]
               for name, text in new.items()}  # fmt: skip
    tensors: dict[tuple[str, str], StoredTensor] = {}
    for (part, name), tensor in source.tensors.items():
        if (part, new[name]) in tensors:
            raise FormatError(
                "two tensors have the same name once wrapper prefixes are removed",
                where=f"{source.root}: {new[name]}",
                fix="keep one copy of the model in the checkpoint",
            )
        tensors[part, new[name]] = replace(tensor, name=new[name])
    notes = dict(source.notes)
    off = [*dict.fromkeys(match for name in names for match in INSIDE.findall(name)), *([prefix] if prefix else [])]
    if off:
        notes["prefix"] = f"{' and '.join(off)} left out of the names"
    if put:
        notes["names"] = f"those of a base class: read with {put} before them, as transformers does"
    return _without_strays(replace(source, tensors=tensors, notes=notes), known, prefix)


def _without_strays(source: Source, known: frozenset[str], prefix: str) -> Source:
    """Without scalars and integers that stand beside the model: a step, the state of a random number generator."""
    firsts = {name.partition(".")[0] for _, name in source.tensors if _key(name) in known}
    strays = {
        key for key, tensor in source.tensors.items()
        if _key(key[1]) not in known and key[1].partition(".")[0] not in firsts
        and (tensor.shape == () or tensor.dtype in COUNTERS)
    } if firsts else set()  # fmt: skip
    if not strays:
        return source
    reason = f"a counter or state beside the model{f', which is under {prefix}' if prefix else ''}"
    return replace(
        source,
        tensors={key: tensor for key, tensor in source.tensors.items() if key not in strays},
        skipped={**source.skipped, **{name: reason for _, name in sorted(strays)}},
        skipped_bytes=source.skipped_bytes + sum(e.nbytes for key in strays for e in source.tensors[key].extents),
    )


def _around(names: Iterable[str], known: frozenset[str]) -> tuple[str, str]:
    """(what stands before the model's names, what is to be put there instead)."""
    bare: dict[str, set[str]] = {}
    usual: Counter[str] = Counter()  # of two that fit alike, the one with more names: model, not mtp beside it
    for key in known:
        first, dot, rest = key.partition(".")
        if dot and first != "#" and "#" in rest:
            bare.setdefault(rest, set()).add(f"{first}.")
            usual[f"{first}."] += 1
    whole: Counter[str] = Counter()
    based: Counter[tuple[str, str]] = Counter()
    for name in names:
        parts = _key(name).split(".")
        for at in range(min(len(parts), DEEPEST)):
            rest = ".".join(parts[at:])
            if "#" not in rest:
                break
            head = ".".join(name.split(".")[:at]) + "." if at else ""
            if rest in known:
                whole[head] += 1
                break
            based.update((head, first) for first in bare.get(rest, ()))
    if whole:
        return max(whole, key=lambda head: (whole[head], -len(head))), ""
    return max(based, key=lambda pair: (based[pair], -len(pair[0]), usual[pair[1]])) if based else ("", "")


def _fits(names: Iterable[str], known: frozenset[str]) -> bool:
    """Whether a name in a layer is one of the model's as it stands."""
    return any("#" in key and key in known for key in map(_key, names))


def _key(name: str) -> str:
    return NUMBER.sub("#", name)


@functools.cache
def _usual(format_name: str) -> frozenset[str]:
    """The names of the format's own layout, numbers as #."""
    return frozenset(PLACE.sub("#", text) for texts in stored_names(format_name).values() for text in texts)


@functools.cache
def _known(format_name: str) -> frozenset[str]:
    """The names of every family in the format, numbers as #."""
    found = set(_usual(format_name))
    for family in families().values():
        for rule in layout(format_name, family).rules:
            found |= {PLACE.sub("#", pattern.text.partition(" : ")[0].strip()) for pattern in rule.patterns}
    return frozenset(found)
