"""Stored tensors that no rule reads: left out for a stated reason, or a problem, one for each pattern of names.

Numbers in names are one pattern: thirty layers that have what the family has not are one cause. Reads no bytes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from crossdock.errors import Problem
from crossdock.formats.stored import Source, StoredTensor
from crossdock.layout.rules import Layout

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MOST = 12  # patterns that are shown
_INTERLEAVED = re.compile(r"\.attention\.(wq|wk)\.weight\Z")


def unread_tensors(source: Source, rules: Layout, read: set[tuple[str, str]]) -> tuple[dict[str, str], list[Problem]]:
    """(names that are left out -> why, problems): what of `source` is not among the `read` (part, name)."""
    unread: dict[str, str] = dict(source.skipped)
    dropped: list[StoredTensor] = []
    for key, stored in source.tensors.items():
        if key in read:
            continue
        reason = next((why for glob, why in rules.skip.items() if fnmatch.fnmatchcase(key[1], glob)), None)
        if reason is None:
            dropped.append(stored)
        else:
            unread[key[1]] = reason
    return unread, _problems(dropped, {_NUMBER.sub("#", name) for _, name in read})


def _problems(dropped: list[StoredTensor], known: set[str]) -> list[Problem]:
    """known: the patterns of names of which others are read."""
    groups: dict[str, list[StoredTensor]] = {}
    beyond: list[StoredTensor] = []
    for stored in dropped:
        key = _NUMBER.sub("#", stored.name)
        if "#" in key and key in known:
            beyond.append(stored)
        else:
            groups.setdefault(key, []).append(stored)
    problems = [_beyond(beyond)] if beyond else []
    problems += [_group(found) for found in list(groups.values())[:_MOST]]
    if len(groups) > _MOST:
        rest = [stored for found in list(groups.values())[_MOST:] for stored in found]
        problems.append(Problem(f"and {len(rest)} more unmapped tensors, of {len(groups) - _MOST} patterns"))
    return problems


def _group(found: list[StoredTensor]) -> Problem:
    first = found[0]
    count = len(found)
    foreign = bool(_INTERLEAVED.search(first.name))
    return Problem(
        "unmapped tensor: no layout rule uses it, so it would be dropped"
        if count == 1
        else f"{count} unmapped tensors: no layout rule uses them, so they would be dropped",
        where=_where(first) if count == 1 else _pattern(stored.name for stored in found),
        got=f"{first.dtype} {list(first.shape)}" + (f" and {count - 1} more" if count > 1 else ""),
        cause="names of torchtitan or of Meta's own code, which store the pairs of q and k interleaved"
        if foreign
        else "another family, a feature that the family does not have, or an adapter that was not merged",
        fix="save the model with Hugging Face's names; --rename alone would leave q and k in another order"
        if foreign
        else "check --family; `crossdock inspect` shows the configuration",
        check="tensor-dropped",
    )


def _beyond(found: list[StoredTensor]) -> Problem:
    """Names that the layout has, with numbers that the configuration does not have: layers or experts too many."""
    return Problem(
        f"{len(found)} tensors are of layers or experts that the configuration does not have",
        where=_pattern(stored.name for stored in found),
        got=f"{found[0].name}: {found[0].dtype} {list(found[0].shape)}",
        cause="num_hidden_layers or the number of experts is smaller than what is stored",
        fix="correct the configuration with --config or --set",
        check="tensor-dropped",
    )


def _where(stored: StoredTensor) -> str:
    return f"{stored.part}/{stored.name}" if stored.part else stored.name


def _pattern(names: Iterable[str]) -> str:
    """The first name, its numbers as ranges over all names: model.layers.{0-31}.x."""
    listed = list(names)
    key = _NUMBER.sub("#", listed[0])
    numbers: list[set[int]] = [set() for _ in range(key.count("#"))]
    for name in listed:
        if _NUMBER.sub("#", name) == key:
            for known, number in zip(numbers, _NUMBER.findall(name), strict=True):
                known.add(int(number))
    pieces = key.split("#")
    spans = [f"{{{min(n)}-{max(n)}}}" if len(n) > 1 else str(min(n)) for n in numbers]
    return "".join(piece + span for piece, span in zip(pieces, [*spans, ""], strict=True))
