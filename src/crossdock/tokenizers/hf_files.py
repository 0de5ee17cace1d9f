"""A tokenizer as the files of a Hugging Face folder: tokenizer.json, tokenizer_config.json, and tokenizer.model.

Writes no file: it gives their contents. Reads nothing and encodes nothing. The JSON is that of huggingface/tokenizers
0.22 as transformers' converter makes it for these models (`convert_slow_tokenizer.py`, LlamaConverter, GPT2Converter,
SpmConverter). SentencePiece's user-defined pieces are words of the vocabulary at which the text is split: as added
tokens they would cut it before spaces are written as ▁, and each part would get a space of its own.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdock.errors import TokenizerError
from crossdock.tokenizers.files import (
    CHAT_TEMPLATES_FOLDER,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
)
from crossdock.tokenizers.pre_tokenizers import components
from crossdock.tokenizers.sentencepiece import sentencepiece_model
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType
from crossdock.tokenizers.vocabulary import SPACE

_ADDED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def hf_files(tokenizer: Tokenizer, *, model: bool = True) -> dict[str, bytes]:
    """Name in the folder -> contents. model: with a tokenizer.model, for the kind "spm".

    Raises TokenizerError for a vocabulary in which two ids have one text, which a tokenizer.json cannot hold.
    """
    byte_level = tokenizer.kind == "bpe"
    texts = _texts(tokenizer)
    if len(set(texts)) < len(texts):
        twice = next(text for text, count in Counter(texts).items() if count > 1)
        where = ", ".join(map(str, tokenizer.sources))
        raise TokenizerError("two tokens have one text, which tokenizer.json cannot hold", where=where, got=twice[:80])
    pairs = zip(tokenizer.tokens, tokenizer.types, strict=True)
    added = [
        {"id": number, "content": text, **_FLAGS, "special": kind != TokenType.USER_DEFINED}
        for number, (text, kind) in enumerate(pairs)
        if kind in _ADDED and number not in tokenizer.symbols
    ]
    head: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None if byte_level else _normalizer(tokenizer),
        "pre_tokenizer": _pre_tokenizer(tokenizer),
        "post_processor": _post_processor(tokenizer),
        "decoder": _BYTE_LEVEL if byte_level else _decoder(tokenizer),
        "model": _unigram(tokenizer, texts) if tokenizer.kind == "unigram" else _bpe(tokenizer, texts),
    }  # fmt: skip
    files = {TOKENIZER_JSON: _json(head), TOKENIZER_CONFIG: _json(_configuration(tokenizer))}
    for name, text in tokenizer.chat_templates.items():
        if name != "default":
            files[f"{CHAT_TEMPLATES_FOLDER}/{re.sub('[^A-Za-z0-9_-]', '_', name)}.jinja"] = text.encode()
    return files | ({TOKENIZER_MODEL: sentencepiece_model(tokenizer)} if model and tokenizer.kind == "spm" else {})


def hf_differences(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What tokenizer.json cannot say of `tokenizer`, as sentences."""
    found: tuple[str, ...] = ()
    if tokenizer.charsmap:
        found = (
            "huggingface/tokenizers applies SentencePiece's normalization to whole graphemes: text with combining "
            "marks or Windows line ends can get other ids than from tokenizer.model",
        )
    if tokenizer.kind != "spm":
        return found
    kinds = zip(tokenizer.tokens, tokenizer.scores, tokenizer.types, strict=True)
    counts = Counter(score for text, score, kind in kinds if len(text) > 1 and kind == TokenType.NORMAL)
    twice = sum(count for count in counts.values() if count > 1)
    if not twice:
        return found
    return (
        *found,
        f"{twice:,} tokens of the vocabulary have the score of another one: where both fit, llama.cpp and "
        "tokenizer.model join the leftmost first, tokenizer.json the one with the lower id",
    )


def _texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each id as the model's vocabulary has it."""
    symbols = frozenset(tokenizer.symbols)
    return [text.replace(" ", SPACE) if n in symbols else text for n, text in enumerate(tokenizer.tokens)]


def _bpe(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    spm = tokenizer.kind == "spm"
    bytes_too = spm and int(TokenType.BYTE) in tokenizer.types
    return {
        "type": "BPE", "dropout": None, "unk_token": _text(tokenizer, "unk") if spm else None,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": spm, "byte_fallback": bytes_too,
        "ignore_merges": tokenizer.ignore_merges or bool(tokenizer.symbols),
        "vocab": {text: number for number, text in enumerate(texts)}, "merges": _merges(tokenizer),
    }  # fmt: skip


def _unigram(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """A user-defined piece, which is alone in its part of the text, is better than any way to cut it."""
    symbols = frozenset(tokenizer.symbols)
    scores = [0.0 if number in symbols else score for number, score in enumerate(tokenizer.scores)]
    unknown = tokenizer.special.get("unk")
    if unknown is None and int(TokenType.UNKNOWN) in tokenizer.types:
        unknown = tokenizer.types.index(int(TokenType.UNKNOWN))
    bytes_too = int(TokenType.BYTE) in tokenizer.types
    vocabulary = [list(pair) for pair in zip(texts, scores, strict=True)]
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": bytes_too}


def _pre_tokenizer(tokenizer: Tokenizer) -> dict[str, Any] | None:
    if tokenizer.kind == "bpe":
        return _sequence("pretokenizers", [*components(tokenizer.splits), _BYTE_LEVEL])
    if not tokenizer.symbols:
        return None
    texts = sorted((tokenizer.tokens[n].replace(" ", SPACE) for n in tokenizer.symbols), key=len, reverse=True)
    pattern = "|".join(map(re.escape, texts))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _sequence(members: str, parts: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", members: parts}


def _text(tokenizer: Tokenizer, role: str) -> str | None:
    number = tokenizer.special.get(role)
    if number is None and role == "unk" and int(TokenType.UNKNOWN) in tokenizer.types:
        number = tokenizer.types.index(int(TokenType.UNKNOWN))
    return None if number is None else tokenizer.tokens[number]


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Pairs in the order in which they are joined. SentencePiece joins any two that make a token, best score first."""
    if tokenizer.kind == "bpe":
        return [(one[:at], one[at + 1 :]) for one in tokenizer.merges for at in (one.find(" ", 1),)]
    parts = (TokenType.NORMAL, TokenType.UNUSED)
    known = {text for text, kind in zip(tokenizer.tokens, tokenizer.types, strict=True) if kind in parts}
    made: list[tuple[int, int]] = [
        (number, at)
        for number, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in parts
        for at in range(1, len(text))
        if text[:at] in known and text[at:] in known
    ]
    best = np.argsort([-tokenizer.scores[number] for number, _ in made], kind="stable")
    return [(tokenizer.tokens[number][:at], tokenizer.tokens[number][at:]) for number, at in (made[i] for i in best)]


def _normalizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """SentencePiece's steps in its order: its map, runs of spaces, the space before the text, spaces as ▁."""
    parts: list[dict[str, Any]] = []
    if tokenizer.charsmap:
        parts.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(tokenizer.charsmap).decode()})
    if tokenizer.remove_extra_whitespaces:
        parts += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if tokenizer.add_space_prefix:
        parts.append({"type": "Prepend", "prepend": SPACE})
    return _sequence("normalizers", [*parts, _replace({"String": " "}, SPACE)])


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    first = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.add_space_prefix else []
    return _sequence("decoders", [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *first])


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    added = {"bos": tokenizer.begins_with(), "eos": tokenizer.ends_with()}
    around = {role: number for role, number in added.items() if number is not None}
    if not around:
        return None

    def template(*names: str) -> list[Any]:
        out: list[Any] = []
        for kind, name in enumerate(names):
            marks = {
                role: [{"SpecialToken": {"id": tokenizer.tokens[n], "type_id": kind}}] for role, n in around.items()
            }
            out += [*marks.get("bos", []), {"Sequence": {"id": name, "type_id": kind}}, *marks.get("eos", [])]
        return out

    tokens = {
        tokenizer.tokens[n]: {"id": tokenizer.tokens[n], "ids": [n], "tokens": [tokenizer.tokens[n]]}
        for n in around.values()
    }
    processing = {"type": "TemplateProcessing", "single": template("A"), "pair": template("A", "B")}
    return {**processing, "special_tokens": tokens}


def _configuration(tokenizer: Tokenizer) -> dict[str, Any]:
    """PreTrainedTokenizerFast takes tokenizer.json as it is; a model's own class would build its parts anew."""
    texts = {f"{role}_token": _text(tokenizer, role) for role in _ROLES}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: text for key, text in texts.items() if text is not None},
        "add_bos_token": tokenizer.begins_with() is not None,
        "add_eos_token": tokenizer.ends_with() is not None,
        "clean_up_tokenization_spaces": False,
        **({"chat_template": tokenizer.chat_templates["default"]} if "default" in tokenizer.chat_templates else {}),
    }
