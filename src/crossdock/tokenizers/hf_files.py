"""A tokenizer as the files of a Hugging Face folder: tokenizer.json, tokenizer_config.json, and tokenizer.model.

Writes no file: it gives their contents. Reads nothing and encodes nothing. The JSON is that of huggingface/tokenizers
0.22 as transformers' converter makes it for these models (`convert_slow_tokenizer.py`, LlamaConverter, GPT2Converter).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdock.tokenizers.files import TOKENIZER_CONFIG, TOKENIZER_JSON, TOKENIZER_MODEL
from crossdock.tokenizers.pre_tokenizers import components
from crossdock.tokenizers.sentencepiece import sentencepiece_model
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType
from crossdock.tokenizers.vocabulary import SPACE

_ADDED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def hf_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Name in the folder -> contents, for a tokenizer of the kind "spm" or "bpe"."""
    spm = tokenizer.kind == "spm"
    vocabulary = {
        text: number for number, text in enumerate(tokenizer.tokens)
    }  # an added token without gets another id
    added = [
        {"id": number, "content": text, **_FLAGS, "special": kind != TokenType.USER_DEFINED}
        for number, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in _ADDED
    ]
    head: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": _normalizer(tokenizer) if spm else None,
        "pre_tokenizer": None if spm else _sequence("pretokenizers", [*components(tokenizer.splits), _BYTE_LEVEL]),
        "post_processor": _post_processor(tokenizer),
        "decoder": _decoder(tokenizer) if spm else _BYTE_LEVEL,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": _text(tokenizer, "unk") if spm else None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": spm, "byte_fallback": spm,
            "ignore_merges": tokenizer.ignore_merges, "vocab": vocabulary, "merges": _merges(tokenizer),
        },
    }  # fmt: skip
    files = {TOKENIZER_JSON: _json(head), TOKENIZER_CONFIG: _json(_configuration(tokenizer))}
    return files | ({TOKENIZER_MODEL: sentencepiece_model(tokenizer)} if spm else {})


def hf_differences(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What tokenizer.json cannot say of `tokenizer`, as sentences."""
    if tokenizer.kind != "spm":
        return ()
    kinds = zip(tokenizer.tokens, tokenizer.scores, tokenizer.types, strict=True)
    counts = Counter(score for text, score, kind in kinds if len(text) > 1 and kind == TokenType.NORMAL)
    twice = sum(count for count in counts.values() if count > 1)
    if not twice:
        return ()
    return (
        f"{twice:,} tokens of the vocabulary have the score of another one: where both fit, llama.cpp and "
        "tokenizer.model join the leftmost first, tokenizer.json the one with the lower id",
    )


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
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if tokenizer.add_space_prefix else []
    return _sequence("normalizers", [*before, spaces])


def _decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    first = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.add_space_prefix else []
    return _sequence("decoders", [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *first])


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    roles = {"bos": tokenizer.add_bos, "eos": tokenizer.add_eos}
    around = {role: tokenizer.special[role] for role, wanted in roles.items() if wanted and role in tokenizer.special}
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
        "add_bos_token": bool(tokenizer.add_bos),
        "add_eos_token": bool(tokenizer.add_eos),
        "clean_up_tokenization_spaces": False,
        **({"chat_template": tokenizer.chat_templates["default"]} if tokenizer.chat_templates else {}),
    }
