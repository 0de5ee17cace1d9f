"""How text is cut into words before BPE: from tokenizer.json to the name that llama.cpp knows.

llama.cpp has the patterns compiled in and takes only a name, so a name is derived from the structure of the
tokenizer's own pattern, never from a hash of its output. The table is `data/pre_tokenizers.toml`, from
llama.cpp `src/llama-vocab.cpp`; each row is tested against the real thing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError, TokenizerError
from crossdock.plugins import DATA
from crossdock.tokenizers.merging import unreached
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType
from crossdock.wording import nearest

# Built into ByteLevel with use_regex (openai/gpt-2 src/encoder.py, huggingface/tokenizers byte_level.rs).
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One row of the table: a llama.cpp name, the spellings of its stages, and whether it implies
    ignore_merges.
    """

    name: str
    stages: tuple[tuple[str, ...], ...]
    ignore_merges: bool
    source: str
    differs: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """All rows that can be derived, and all names the loader accepts."""

    rows: tuple[PreTokenizer, ...]
    names: tuple[str, ...]


def table() -> Table:
    """Read the table. Raises FormatError (a packaging fault) for unknown keys and names not accepted."""
    where = "data/pre_tokenizers.toml"
    data = tomllib.loads((DATA.parent / where).read_text(encoding="utf-8"))
    rows = []
    for row in data["pre_tokenizer"]:
        if unknown := set(row) - {"name", "stages", "ignore_merges", "source", "differs"}:
            raise FormatError(f"unknown key {sorted(unknown)[0]!r} in {row.get('name')!r}", where=where)
        if row["name"] not in data["names"]:
            raise FormatError(f"{row['name']!r} is not among the names", where=where)
        spellings = tuple(tuple(stages) for stages in row["stages"])
        implied, differs = row.get("ignore_merges", False), row.get("differs", "")
        rows.append(PreTokenizer(row["name"], spellings, implied, row["source"], differs))
    return Table(tuple(rows), tuple(data["names"]))


def stages(node: Mapping[str, Any] | None, path: Path) -> tuple[tuple[str, ...], bool]:
    """(stages, add_prefix_space) of the "pre_tokenizer" of a byte-level tokenizer.json.

    A stage is a line like `split \\p{N}{1,3}`; equal structures give equal lines: ByteLevel's built-in
    pattern, Digits and a Split that removes everything but its matches are written as the split they amount
    to. Raises FormatError for JSON of the wrong types.
    """
    found: list[str] = []
    prefix_space = False
    for one in flatten(node, "pretokenizers", path):
        kind = one.get("type")
        if kind == "ByteLevel":
            prefix_space |= bool(one.get("add_prefix_space", True))
            if one.get("use_regex", True):
                found.append(f"split {GPT2_PATTERN}")
        elif kind == "Digits":
            found.append(r"split \p{N}" if one.get("individual_digits") else r"split \p{N}+")
        elif kind == "Split":
            found.append(_split(one, path))
        elif kind == "Punctuation":
            found.append(f"punctuation {str(one.get('behavior', 'Isolated')).lower()}")
        else:
            found.append(str(kind))
    return tuple(found), prefix_space


def components(splits: Sequence[str]) -> list[dict[str, Any]]:
    """The stages of a row of the table as the JSON of huggingface/tokenizers, without ByteLevel: `stages` undone."""
    found: list[dict[str, Any]] = []
    for kind, _, rest in (stage.partition(" ") for stage in splits):
        if kind == "punctuation":
            found.append({"type": "Punctuation", "behavior": rest.capitalize()})
        else:
            found.append({"type": "Split", "pattern": {"Regex": rest}, "behavior": "Isolated", "invert": False})
    return found


def flatten(node: Any, members: str, path: Path) -> list[Mapping[str, Any]]:
    """The components of a normalizer, pre-tokenizer or processor in order, sequences opened up."""
    found: list[Mapping[str, Any]] = []
    left = [] if node is None else [node]
    while left:
        part = left.pop()
        if not isinstance(part, Mapping):
            raise FormatError("a component is not a JSON object", where=str(path), got=repr(part)[:80])
        if part.get("type") != "Sequence":
            found.append(part)
            continue
        parts = part.get(members)
        if not isinstance(parts, list):
            raise FormatError(f"a Sequence without {members}", where=str(path))
        left += reversed(parts)
    return found


def choose(tokenizer: Tokenizer, override: str | None = None) -> str:
    """llama.cpp's name for the tokenizer's pre-tokenizer, or `override` when it is one of its names.

    Several names share a pattern and differ in ignore_merges, which the name implies. A name that implies the
    other value is taken only when that provably changes nothing: when every token is what its own text merges
    to. Raises TokenizerError.
    """
    known = table()
    where = str(tokenizer.sources[0]) if tokenizer.sources else ""
    if override is not None:
        if override not in known.names:
            near = nearest(override, known.names, 3, 0.4)
            raise TokenizerError(
                f"llama.cpp has no pre-tokenizer {override!r}",
                where=where,
                expected=" or ".join(near) if near else "",
                fix="--pre-tokenizer list shows all names; without the option the tokenizer's own pattern decides",
            )
        return override
    rows = [row for row in known.rows if tokenizer.splits in row.stages]
    if not rows:
        raise TokenizerError(
            "the tokenizer splits text in a way for which llama.cpp has no name",
            where=where,
            got=" then ".join(tokenizer.splits) or "no splitting at all",
            cause="a custom pre-tokenizer pattern, or one that is newer than this program",
            fix="--pre-tokenizer NAME with the nearest; --pre-tokenizer list shows all names",
        )
    if rows[0].ignore_merges == tokenizer.ignore_merges:
        return rows[0].name
    normal = [text for text, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind == TokenType.NORMAL]
    lost = unreached(normal, tokenizer.merges)
    if not lost:
        return rows[0].name
    for row in rows:
        if row.ignore_merges == tokenizer.ignore_merges:
            return row.name
    raise TokenizerError(
        f"{_names(rows)} has this pattern but treats whole words otherwise",
        where=where,
        expected=f"ignore_merges {tokenizer.ignore_merges}",
        got=f"{len(lost)} tokens that merging does not reach, such as {lost[0][:40]!r}",
        fix=f"--pre-tokenizer {rows[0].name} if words that are such tokens may be split otherwise",
    )


def _split(one: Mapping[str, Any], path: Path) -> str:
    pattern = one.get("pattern")
    if not isinstance(pattern, Mapping) or len(pattern) != 1:
        raise FormatError("a Split without one pattern", where=str(path), got=repr(pattern)[:80])
    (kind, text), behavior, invert = next(iter(pattern.items())), one.get("behavior"), bool(one.get("invert"))
    # DeepSeek's patterns hold the control characters themselves where others hold their escapes.
    text = str(text).replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    if kind == "Regex" and (behavior, invert) in (("Isolated", False), ("Isolated", True)):
        return f"split {text}"
    if kind == "Regex" and (behavior, invert) == ("Removed", True) and text.endswith(r"|\s+"):
        # Keeping only the matches loses nothing when any text matches, as it does with these patterns.
        return f"split {text}"
    return f"split {behavior}{' inverted' if invert else ''} {kind} {text}"


def _names(rows: Sequence[PreTokenizer]) -> str:
    return " / ".join(row.name for row in rows)
