"""Hugging Face's tokenizer.json: byte-level BPE, SentencePiece-style BPE and Unigram.

Knows the JSON that huggingface/tokenizers 0.20 to 0.23 writes (merges as "a b" strings or as pairs) and what
llama.cpp makes of it; runs none of it. WordPiece and WordLevel are refused. SentencePiece-style BPE goes on
in `spm_json`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError, Problem
from crossdock.tokenizers import spm_json
from crossdock.tokenizers.files import read_json
from crossdock.tokenizers.pre_tokenizers import flatten, stages
from crossdock.tokenizers.processors import added_around
from crossdock.tokenizers.sentencepiece import is_charsmap
from crossdock.tokenizers.tokenizer import Kind, TokenType
from crossdock.tokenizers.vocabulary import (
    NO_BYTE_FALLBACK,
    SPACE,
    Token,
    Vocabulary,
    added_token,
    by_id,
    check_id,
    check_texts,
    difference,
    is_byte_token,
    refuse,
)


def read_tokenizer_json(path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer.json.

    Raises FormatError for JSON that is not a tokenizer, TokenizerError for kinds that cannot be carried over.
    """
    data = read_json(path)
    model = data.get("model")
    if not isinstance(model, dict):
        raise FormatError("no model in it", where=str(path), fix="is this the tokenizer.json of a tokenizer?")
    # Files from before tokenizers 0.10 have no model type.
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece")
    if kind == "Unigram":
        return _unigram(data, model, path)
    if kind != "BPE":
        raise refuse("this kind of model cannot be carried over", path, expected="BPE or Unigram", got=str(kind))
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise refuse(f"llama.cpp has no {option} in BPE", path, got=repr(model[option])[:80])
    parts = [
        *flatten(data.get("pre_tokenizer"), "pretokenizers", path),
        *flatten(data.get("decoder"), "decoders", path),
    ]
    if any(part.get("type") == "ByteLevel" for part in parts):
        return _byte_level(data, model, path)
    return spm_json.vocabulary(data, texts_of(model, path), merges_of(model, path), added_of(data, "spm", path), path)


def texts_of(model: Mapping[str, Any], path: Path) -> dict[int, str]:
    """id → text of a model whose vocabulary is an object. Raises FormatError."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise FormatError("the vocabulary is not an object", where=str(path), got=type(vocab).__name__)
    check_texts(vocab, path, "token")
    return by_id(vocab.items(), path)


def merges_of(model: Mapping[str, Any], path: Path) -> tuple[tuple[str, str], ...]:
    """The merges as pairs in rank order. Raises FormatError."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise FormatError("the merges are not a list", where=str(path), got=type(merges).__name__)
    pairs = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) and half for half in pair):
            raise FormatError(f"merge {rank} is not a pair", where=str(path), got=repr(merge)[:80])
        pairs.append((pair[0], pair[1]))
    if len(set(pairs)) != len(pairs):
        more = len(pairs) - len(set(pairs))
        raise FormatError(f"{more:,} merges occur twice", where=str(path), cause="a damaged or doctored file")
    check_texts((half for pair in pairs for half in pair), path, "merge")
    return tuple(pairs)


def check_merges(merges: Iterable[tuple[str, str]], texts: Iterable[str], path: Path) -> None:
    """Raises FormatError for a merge of, or to, what is not a token, as huggingface/tokenizers does."""
    known = set(texts)
    for rank, (left, right) in enumerate(merges):
        for text in (left, right, left + right):
            if text not in known:
                what = f"merge {rank} needs {text[:80]!r}, which is not a token"
                raise FormatError(what, where=str(path), cause="vocabulary and merges of two tokenizers")


def added_of(data: Mapping[str, Any], kind: Kind, path: Path) -> dict[int, Token]:
    """id → entry of "added_tokens". Raises FormatError."""
    listed = data.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise FormatError("added_tokens is not a list of objects", where=str(path))
    tokens: dict[int, Token] = {}
    for token in listed:
        text = token.get("content")
        if not isinstance(text, str):
            raise FormatError("an added token has no content", where=str(path), got=repr(token)[:80])
        number = check_id(token.get("id"), text, path)
        if number in tokens and tokens[number].text != text:
            raise FormatError(
                f"id {number} belongs to two added tokens: {tokens[number].text[:80]!r} and {text[:80]!r}",
                where=str(path),
            )
        tokens[number] = added_token(text, bool(token.get("special")), kind)
    check_texts((token.text for token in tokens.values()), path, "added token")
    return tokens


def _byte_level(data: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> Vocabulary:
    splits, prefix_space = stages(data.get("pre_tokenizer"), path)
    added = added_of(data, "bpe", path)
    texts, merges = texts_of(model, path), merges_of(model, path)
    check_merges(merges, texts.values(), path)
    tokens = {number: Token(text) for number, text in texts.items()} | added
    around = added_around(data, tokens, path)
    found = [*_normalizer_differences(data, path), *around.differences, *added_differences(data, path)]
    if prefix_space:
        found.append(
            difference("llama.cpp puts no space before the text; this tokenizer does (add_prefix_space)", path)
        )
    if model.get("dropout"):
        found.append(difference("llama.cpp merges without dropout; this tokenizer has some", path))
    return Vocabulary(
        kind="bpe",
        tokens=tokens,
        # GGUF merges are "left right": a space inside a half is written as the byte-level alphabet writes it.
        merges=tuple(" ".join(half.replace(" ", "Ġ") for half in pair) for pair in merges),
        splits=splits,
        ignore_merges=bool(model.get("ignore_merges")),
        special=around.special,
        begin=around.special.get("bos"),
        end=around.special.get("eos"),
        add_bos=around.add_bos,
        add_eos=around.add_eos,
        differences=tuple(found),
    )


def _normalizer_differences(data: Mapping[str, Any], path: Path) -> list[Problem]:
    names = [str(part.get("type")) for part in flatten(data.get("normalizer"), "normalizers", path)]
    if strange := [name for name in names if name not in ("NFC", "NFKC", "NFD", "NFKD")]:
        raise refuse("llama.cpp does not change text before byte-level BPE, this tokenizer does", path, got=strange[0])
    return [difference(f"llama.cpp does not normalize text; this tokenizer does ({name})", path) for name in names]


def added_differences(data: Mapping[str, Any], path: Path) -> list[Problem]:
    """What engines do not know about added tokens: stripping of spaces around them, and whole words only."""
    found = []
    for option in ("lstrip", "rstrip", "single_word"):
        texts = [str(token.get("content")) for token in data.get("added_tokens") or [] if token.get(option)]
        if texts:
            what = f"llama.cpp does not know {option} of added tokens: {', '.join(map(repr, texts[:5]))}"
            found.append(difference(what, path))
    return found


def _unigram(data: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> Vocabulary:
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not vocab:
        raise FormatError("the vocabulary is not a list", where=str(path), got=type(vocab).__name__)
    unknown = model.get("unk_id")
    tokens: dict[int, Token] = {}
    for number, entry in enumerate(vocab):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or not _is_score(entry[1]):
            raise FormatError(f"entry {number} is not [text, score]", where=str(path), got=repr(entry)[:80])
        kind = TokenType.NORMAL
        if number == unknown:
            kind = TokenType.UNKNOWN
        elif model.get("byte_fallback") and is_byte_token(entry[0]):
            kind = TokenType.BYTE
        tokens[number] = Token(entry[0], kind, float(entry[1]))
    check_texts((token.text for token in tokens.values()), path, "token")
    if unknown is None:
        raise refuse("llama.cpp needs an unknown token in a Unigram model, this one has no unk_id", path)
    special = {"unk": check_id(unknown, "unk_id", path)}
    if special["unk"] not in tokens:
        raise FormatError("unk_id is outside the vocabulary", where=str(path), got=str(unknown))
    added = {number: token for number, token in added_of(data, "unigram", path).items() if number != unknown}
    around = added_around(data, tokens | added, path)
    charsmap, collapse, found = _unigram_normalizer(data, path)
    prefix, splits_on_space = _metaspace(data, path)
    if model.get("byte_fallback"):
        found.append(difference(NO_BYTE_FALLBACK, path))
    return Vocabulary(
        kind="unigram",
        tokens=tokens | added,
        special=special | dict(around.special),
        begin=around.special.get("bos"),
        end=around.special.get("eos"),
        add_bos=around.add_bos,
        add_eos=around.add_eos,
        add_space_prefix=prefix,
        remove_extra_whitespaces=collapse or splits_on_space,
        charsmap=charsmap,
        differences=(*found, *around.differences, *added_differences(data, path)),
    )


def _unigram_normalizer(data: Mapping[str, Any], path: Path) -> tuple[bytes, bool, list[Problem]]:
    """(charsmap, whether runs of spaces are collapsed, what is left out)."""
    charsmap, collapse, found = b"", False, []
    for part in flatten(data.get("normalizer"), "normalizers", path):
        kind = part.get("type")
        if kind == "Precompiled":
            try:
                charsmap = base64.b64decode(part.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise FormatError("precompiled_charsmap is not base64", where=str(path)) from None
            if charsmap and not is_charsmap(charsmap):
                raise FormatError(
                    "precompiled_charsmap is not a normalization map", where=str(path), got=f"{len(charsmap):,} bytes",
                    cause="a damaged or truncated file",
                )  # fmt: skip
        elif (
            kind == "Replace" and part.get("pattern") == {"Regex": " {2,}"} and part.get("content") in (" ", SPACE)
        ) or kind == "Strip":
            collapse = True
        else:
            found.append(difference(f"llama.cpp does not apply the normalizer {kind}", path))
    return charsmap, collapse, found


def _metaspace(data: Mapping[str, Any], path: Path) -> tuple[bool, bool]:
    """(whether a space is put before the text, whether spaces are dropped by splitting on them)."""
    prefix, drops, seen = False, False, False
    for part in flatten(data.get("pre_tokenizer"), "pretokenizers", path):
        kind = part.get("type")
        if kind == "Metaspace":
            seen = True
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            prefix = scheme != "never"
            if part.get("replacement", SPACE) != SPACE:
                raise refuse("llama.cpp writes spaces as ▁", path, got=repr(part.get("replacement"))[:40])
        elif kind == "WhitespaceSplit":
            drops = True
        else:
            raise refuse("llama.cpp splits no text before Unigram, this tokenizer does", path, got=str(kind))
    if not seen:
        raise refuse("llama.cpp writes spaces as ▁ before Unigram, this tokenizer does not", path, expected="Metaspace")
    return prefix, drops


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
