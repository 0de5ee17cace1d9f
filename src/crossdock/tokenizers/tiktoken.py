"""tiktoken's rank files, as a byte-level BPE: lines of "base64 rank", or Megatron's JSON list of the same.

tiktoken joins the two neighbours whose joined bytes have the lowest rank. Written as merges: every way to cut a token
into two tokens, in the order of the ranks of what they make; this is what transformers 5.24 does
(`convert_slow_tokenizer.py`, TikTokenConverter). Which text is split off and what the special tokens are is not in the
files: `data/tiktoken.toml` knows the published ones. Formats from openai/tiktoken `load.py` (0.12) and Megatron-LM
`tiktoken_tokenizer.py`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError
from crossdock.io.json import TOKENIZER, parse_json
from crossdock.plugins import DATA
from crossdock.tokenizers.files import read_bytes
from crossdock.tokenizers.pre_tokenizers import table
from crossdock.tokenizers.tokenizer import MAX_TOKENS, TokenType
from crossdock.tokenizers.vocabulary import Token, Vocabulary

_LONGEST = 1 << 10  # bytes of a token; real ones have at most 128


def read_tiktoken(path: Path) -> Vocabulary:
    """The vocabulary in a rank file. Raises FormatError for a file that is damaged or is not one."""
    ranks = _ranks(path)
    row = _row(path, len(ranks))
    first = row.get("first_rank", 0)
    if most := row.get("most"):
        ranks = {text: rank for text, rank in ranks.items() if rank + first < most}
    lacking = sum(bytes([byte]) not in ranks for byte in range(256))
    if lacking:
        raise FormatError(f"{lacking} of the 256 bytes are not tokens", where=str(path), cause="a truncated file")
    letters = _alphabet()
    tokens = {first + rank: Token("".join(letters[byte] for byte in text)) for text, rank in ranks.items()}
    special = {number: Token(text, TokenType.CONTROL) for number, text in _special(row)}
    ids = {token.text: number for number, token in special.items()}
    split = next(one for one in table().rows if one.name == row["split"])
    assumed = (f"tokenizer {path.name}: {row['assumed']}",) if "assumed" in row else ()
    return Vocabulary(
        "bpe",
        tokens | special,
        merges=tuple(" ".join("".join(letters[byte] for byte in half) for half in pair) for pair in _merges(ranks)),
        splits=split.stages[0],
        ignore_merges=True,
        special={role: ids[row[role]] for role in ("bos", "eos") if role in row},
        assumed=assumed,
    )


def _ranks(path: Path) -> dict[bytes, int]:
    """Bytes of each token -> rank. Raises FormatError for entries that are not such, and for ranks twice or lacking."""
    data = read_bytes(path)
    where = str(path)
    ranks: dict[bytes, int] = {}
    try:
        entries = (
            _listed(data) if data.lstrip()[:1] == b"[" else [tuple(line.split()) for line in data.splitlines() if line]
        )
        for encoded, rank in entries:
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise FormatError(
            f"not a list of ranks, after {len(ranks):,} of them",
            where=where,
            expected="lines of base64 and a number, or a JSON list of rank and token_bytes",
            got=str(error)[:80],
            cause="a truncated or edited file",
        ) from None
    if not ranks or len(ranks) != len(entries) or len(ranks) > MAX_TOKENS or max(map(len, ranks)) > _LONGEST:
        raise FormatError("tokens twice, too many or too long", where=where, got=f"{len(entries):,} entries")
    if len(set(ranks.values())) != len(ranks) or not all(0 <= rank < MAX_TOKENS for rank in ranks.values()):
        raise FormatError("ranks twice, or out of range", where=where, expected="one rank from 0 for each token")
    return ranks


def _listed(data: bytes) -> list[tuple[str, int]]:
    found = parse_json(data, TOKENIZER)
    return [(entry["token_bytes"], entry["rank"]) for entry in found]


def _row(path: Path, count: int) -> Mapping[str, Any]:
    """The row of the table for a file of this name with so many ranks."""
    rows = tomllib.loads((DATA / "tiktoken.toml").read_text(encoding="utf-8"))["encoding"]
    listed = path.suffix == ".json"
    return next(
        row
        for row in rows
        if any(fnmatch.fnmatchcase(path.name, glob) for glob in row["files"])
        and row.get("ranks", count) == count
        and listed == ("first_rank" in row)
    )


def _special(row: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(id, text) of the special tokens."""
    filler = row.get("filler", {"text": "", "first": 0, "from": 0, "count": 0})
    more = [(filler["first"] + step, filler["text"].format(n=filler["from"] + step)) for step in range(filler["count"])]
    return [(number, text) for number, text in row.get("special", ())] + more


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    merges: list[tuple[bytes, bytes]] = []
    for text in sorted(ranks, key=ranks.__getitem__):
        pairs = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ranks and text[at:] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _alphabet() -> str:
    """The characters in which byte-level BPE writes the bytes 0 to 255 (openai/gpt-2 `src/encoder.py`)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in kept else next(others)) for byte in range(256))
