"""What one vocabulary file says, before the configuration files beside it are taken into account.

Pure data and the few rules that all readers share: what a valid id and text are, how added tokens lie over a
base vocabulary, which added tokens are control tokens. The last rule is that of llama.cpp
`conversion/base.py` (`get_vocab_base`, `does_token_look_special`, read at 0c1e57098).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from crossdock.errors import FormatError, Problem, TokenizerError
from crossdock.tokenizers.tokenizer import MAX_TOKENS, Kind, TokenType

SPACE = "▁"  # U+2581, how SentencePiece writes a space
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0

# Facts about llama.cpp that more than one reader has to tell.
NO_BYTE_TOKENS = "llama.cpp aborts on characters outside the vocabulary: this one has no byte tokens for them"
NO_BYTE_FALLBACK = "llama.cpp has no byte fallback for Unigram: characters outside the vocabulary become unknown tokens"


class Token(NamedTuple):
    """One entry of a vocabulary: its text, type and score."""

    text: str
    type: TokenType = TokenType.NORMAL
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The contents of tokenizer.json, tokenizer.model or vocab.json. Fields as in `Tokenizer`.

    special  roles that the file itself settles: "bos", "eos", "unk", "pad" → id
    """

    kind: Kind
    tokens: Mapping[int, Token]
    merges: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    ignore_merges: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    begin: int | None = None
    end: int | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    symbols: tuple[int, ...] = ()
    differences: tuple[Problem, ...] = ()
    assumed: tuple[str, ...] = ()


def looks_special(text: str) -> bool:
    """Whether an added token is a control token although it is not marked so."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def is_byte_token(text: str) -> bool:
    """Whether this is SentencePiece's spelling of one byte, "<0x00>" to "<0xFF>"."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">") and _is_hex(text[3:5])


def added_token(text: str, special: bool, kind: Kind) -> Token:
    """The entry of an added token. Engines match its text against raw input, so ▁ becomes a space there."""
    if special or looks_special(text):
        return Token(text, TokenType.CONTROL, ADDED_SCORE)
    return Token(text if kind == "bpe" else text.replace(SPACE, " "), TokenType.USER_DEFINED, ADDED_SCORE)


def check_id(value: Any, text: str, path: Path) -> int:
    """`value` as a token id. Raises FormatError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_TOKENS:
        raise FormatError(
            f"token {text[:80]!r} has no usable id",
            where=str(path),
            expected=f"an integer from 0 to {MAX_TOKENS - 1}",
            got=repr(value)[:80],
        )
    return value


def by_id(entries: Iterable[tuple[str, Any]], path: Path) -> dict[int, str]:
    """Turn text → id around. Raises FormatError listing ids that are no ids and ids given to two texts."""
    texts: dict[int, str] = {}
    problems: list[Problem] = []
    for text, value in entries:
        token = check_id(value, text, path)
        if token in texts and texts[token] != text and len(problems) < 20:
            what = f"id {token} belongs to two tokens: {texts[token][:80]!r} and {text[:80]!r}"
            problems.append(Problem(what, where=str(path)))
        texts[token] = text
    if problems:
        raise FormatError(problems)
    return texts


def check_texts(texts: Iterable[str], path: Path, what: str) -> None:
    """Raises FormatError for a text that cannot be written as UTF-8 (a lone surrogate from a JSON escape)."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise FormatError(f"{what} {text[:80]!a} is not Unicode text", where=str(path)) from None


def difference(what: str, path: Path, *, cause: str = "", fix: str = "") -> Problem:
    """One thing that the target will do otherwise."""
    return Problem(what, where=str(path), cause=cause, fix=fix)


def refuse(what: str, path: Path, *, expected: str = "", got: str = "", fix: str = "") -> TokenizerError:
    """The error for a tokenizer that cannot be carried over."""
    return TokenizerError(what, where=str(path), expected=expected, got=got, fix=fix)


def _is_hex(digits: str) -> bool:
    return all(digit in "0123456789ABCDEFabcdef" for digit in digits)
