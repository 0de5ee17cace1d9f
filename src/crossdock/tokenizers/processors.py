"""What a tokenizer.json puts around the text: the post-processor, reduced to what engines can do.

Engines add one begin and one end token. Anything richer is reported as a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError, Problem
from crossdock.tokenizers.pre_tokenizers import flatten
from crossdock.tokenizers.vocabulary import Token, difference


@dataclass(frozen=True, slots=True)
class Around:
    """add_bos and add_eos are None without a post-processor that says so; special has "bos" and "eos" if it
    does.
    """

    add_bos: bool | None = None
    add_eos: bool | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    differences: tuple[Problem, ...] = ()


def added_around(data: Mapping[str, Any], tokens: Mapping[int, Token], path: Path) -> Around:
    """Read "post_processor". Raises FormatError for a special token that is not in `tokens`."""
    before: list[str] = []
    after: list[str] = []
    templated = False
    for part in flatten(data.get("post_processor"), "processors", path):
        kind = part.get("type")
        if kind == "TemplateProcessing":
            templated = True
            before, after = _template(part, path)
        elif kind in ("RobertaProcessing", "BertProcessing"):
            templated = True
            before, after = [_pair(part, "cls", path)], [_pair(part, "sep", path)]
    if not templated:
        return Around()
    ids = {token.text: number for number, token in tokens.items()}
    if missing := [text for text in (*before, *after) if text not in ids]:
        raise FormatError(
            "the post-processor adds a token that does not exist", where=str(path), got=repr(missing[0])[:80]
        )
    special = {}
    if before:
        special["bos"] = ids[before[0]]
    if after:
        special["eos"] = ids[after[-1]]
    found = []
    if len(before) > 1 or len(after) > 1:
        what = f"llama.cpp adds one token before and one behind; this tokenizer adds {before} and {after}"
        found.append(difference(what, path))
    return Around(bool(before), bool(after), special, tuple(found))


def _template(part: Mapping[str, Any], path: Path) -> tuple[list[str], list[str]]:
    single = part.get("single")
    if not isinstance(single, list):
        raise FormatError("a TemplateProcessing without single", where=str(path))
    before: list[str] = []
    after: list[str] = []
    side = before
    for piece in single:
        inner = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(inner.get("id"), str):
            side.append(inner["id"])
        else:
            side = after
    return before, after


def _pair(part: Mapping[str, Any], name: str, path: Path) -> str:
    pair = part.get(name)
    if not isinstance(pair, list) or not pair or not isinstance(pair[0], str):
        raise FormatError(f"a post-processor without {name}", where=str(path))
    return pair[0]
