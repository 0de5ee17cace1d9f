"""SentencePiece-style BPE in a tokenizer.json (Llama 2, Mistral, Gemma without their tokenizer.model).

llama.cpp's "llama" model has no merges: it joins the two neighbours whose joined text scores highest, for any
two that join to a token. A list of merges is the same only when every way to join two tokens to a token is a
merge; this is checked, and the scores are then the negated ranks, as SentencePiece's trainer writes them.
llama.cpp's own converter writes the score -1000 for every token here (gguf-py
`LlamaHfVocab.get_token_score`), which merges left to right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError, Problem
from crossdock.tokenizers.merging import LONGEST
from crossdock.tokenizers.pre_tokenizers import flatten
from crossdock.tokenizers.processors import added_around
from crossdock.tokenizers.tokenizer import TokenType
from crossdock.tokenizers.vocabulary import (
    NO_BYTE_TOKENS,
    SPACE,
    Token,
    Vocabulary,
    difference,
    is_byte_token,
    refuse,
)


def vocabulary(
    data: Mapping[str, Any],
    texts: Mapping[int, str],
    merges: Sequence[tuple[str, str]],
    added: Mapping[int, Token],
    path: Path,
) -> Vocabulary:
    """The vocabulary of a BPE model that is not byte-level.

    texts  id → text of the model; added  id → entry of the added tokens, which lie over it
    Raises TokenizerError where "llama" would tokenize otherwise.
    """
    model = data["model"]
    unknown = model.get("unk_token")
    if not isinstance(unknown, str | None):
        raise FormatError("unk_token is not text", where=str(path), got=repr(unknown)[:80])
    prefix = _normalizer(data, path)
    prefix |= _pre_tokenizer(data, texts, path)
    scores = _scores(texts, merges, added, path)
    tokens = {}
    for number, text in texts.items():
        kind = TokenType.NORMAL
        if text == unknown:
            kind = TokenType.UNKNOWN
        elif model.get("byte_fallback") and is_byte_token(text):
            kind = TokenType.BYTE
        tokens[number] = Token(text, kind, scores.get(text, 0.0))
    over = {n: token for n, token in added.items() if token.text != unknown}
    around = added_around(data, tokens | over, path)
    found: list[Problem] = list(around.differences)
    if sum(token.type == TokenType.BYTE for token in tokens.values()) < 256:
        found.append(difference(NO_BYTE_TOKENS, path))
    ids = {text: number for number, text in texts.items()}
    return Vocabulary(
        kind="spm",
        tokens=tokens | over,
        special=({"unk": ids[unknown]} if unknown in ids else {}) | dict(around.special),
        begin=around.special.get("bos"),
        end=around.special.get("eos"),
        add_bos=bool(around.add_bos),
        add_eos=bool(around.add_eos),
        add_space_prefix=prefix,
        differences=tuple(found),
    )


def _normalizer(data: Mapping[str, Any], path: Path) -> bool:
    """Whether a space is put before the text. Raises TokenizerError for other changes of the text."""
    prefix = False
    for part in flatten(data.get("normalizer"), "normalizers", path):
        kind = part.get("type")
        if kind == "Prepend" and part.get("prepend") == SPACE:
            prefix = True
        elif not (kind == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == SPACE):
            raise refuse("llama.cpp changes no text before SentencePiece BPE, this tokenizer does", path, got=str(kind))
    return prefix


def _pre_tokenizer(data: Mapping[str, Any], texts: Mapping[int, str], path: Path) -> bool:
    """Whether a space is put before the text. Raises TokenizerError for splitting that would be seen in the
    result.
    """
    normalizers = flatten(data.get("normalizer"), "normalizers", path)
    spaces_gone = any(part.get("type") == "Replace" for part in normalizers)
    prefix, meta = False, spaces_gone
    for part in flatten(data.get("pre_tokenizer"), "pretokenizers", path):
        kind = part.get("type")
        if kind == "Metaspace" and part.get("replacement", SPACE) == SPACE:
            meta = True
            prefix = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never") != "never"
            if part.get("split", True):
                _demand_word_tokens(texts, path)
        elif not (kind == "Split" and part.get("pattern") == {"String": " "} and spaces_gone):
            raise refuse("llama.cpp splits no text before SentencePiece BPE, this tokenizer does", path, got=str(kind))
    if not meta:
        raise refuse(
            "a BPE model that is neither byte-level nor in SentencePiece's style",
            path,
            expected="ByteLevel, or spaces written as ▁ by a normalizer or by Metaspace",
        )
    return prefix


def _demand_word_tokens(texts: Mapping[int, str], path: Path) -> None:
    """Metaspace splits before each ▁: unseen in the result only if no token has one inside."""
    inside = [text for text in texts.values() if SPACE in text[1:]]
    if inside:
        raise refuse(
            "this tokenizer splits text before each ▁, llama.cpp does not, and tokens have one inside",
            path,
            got=", ".join(map(repr, inside[:3])),
        )


def _scores(
    texts: Mapping[int, str], merges: Sequence[tuple[str, str]], added: Mapping[int, Token], path: Path
) -> dict[str, float]:
    """text → score of every token that a merge makes: minus the rank of the first such merge."""
    known = set(texts.values())
    outside = {token.text for token in added.values()}
    made: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        made.setdefault(left + right, -float(rank + 1))
    pairs = set(merges)
    for text in known:
        if text in outside or len(text) < 2 or is_byte_token(text):
            continue
        if len(text) > LONGEST:
            raise refuse(
                "a token is too long to be checked",
                path,
                expected=f"{LONGEST} characters",
                got=str(len(text)),
            )
        for at in range(1, len(text)):
            pair = (text[:at], text[at:])
            if pair not in pairs and pair[0] in known and pair[1] in known:
                raise refuse(
                    f"scores cannot stand for these merges: {pair[0]!r} and {pair[1]!r} join without a merge",
                    path,
                    fix="pass the tokenizer.model of the same tokenizer instead",
                )
    if strange := [text for text in made if text not in known]:
        raise refuse("a merge makes a text that is not a token", path, got=repr(strange[0])[:80])
    return made
