"""From the keys `tokenizer.*` of a GGUF file to one `Tokenizer`: the way back from `gguf_metadata`.

Reads no file and encodes nothing. What a key means when it is missing, from llama.cpp `src/llama-vocab.cpp`
(llama_vocab::impl::load, b11549).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossdock.errors import FormatError, TokenizerError
from crossdock.tokenizers.gguf_metadata import ID_KEYS, MODELS
from crossdock.tokenizers.pre_tokenizers import PreTokenizer, table
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType

_ADD_BOS = ("llama-bpe", "tekken")  # pre-tokenizers with which llama.cpp adds the begin token unless told not to
_TEMPLATE = "tokenizer.chat_template"


def from_gguf(keys: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer that the metadata of a GGUF file holds. `where`: the file, for messages.

    Rows "[PAD{id}]" at the end, which stand for no token, are left out. Raises FormatError where the keys contradict
    each other, TokenizerError for a model or a pre-tokenizer that is only llama.cpp's own.
    """
    kinds = {MODELS[kind]: kind for kind in ("spm", "bpe")}
    model = keys.get("tokenizer.ggml.model")
    if model not in kinds:
        raise TokenizerError(
            f"a vocabulary of the kind {model!r} has no form outside of GGUF that crossdock writes",
            where=where,
            expected=" or ".join(map(repr, kinds)),
            fix="--tokenizer with the tokenizer's own files",
        )
    kind = kinds[model]
    tokens = _list(keys, "tokens", where)
    types = list(map(int, keys.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))))
    scores = list(map(float, keys.get("tokenizer.ggml.scores", ()))) if kind == "spm" else [0.0] * len(tokens)
    if not len(tokens) == len(types) == len(scores) or not all(1 <= one <= max(TokenType) for one in types):
        raise FormatError(
            "tokens, types and scores of the vocabulary do not fit each other",
            where=where,
            got=f"{len(tokens)} tokens, {len(types)} types from 1 to {max(TokenType)}, {len(scores)} scores",
        )
    if not all(map(math.isfinite, scores)):
        raise FormatError("a score of the vocabulary is not a number", where=where, expected="finite scores")
    size = len(tokens)
    while size and types[size - 1] == TokenType.UNUSED and tokens[size - 1] == f"[PAD{size - 1}]":
        size -= 1
    row = _row(keys, where) if kind == "bpe" else None
    special = _special(keys, size, where)
    template = keys.get(_TEMPLATE)
    prefix = f"{_TEMPLATE}."
    named = {key.removeprefix(prefix): text for key, text in keys.items()
             if key.startswith(prefix) and isinstance(text, str)}  # fmt: skip
    add_bos = keys.get("tokenizer.ggml.add_bos_token", kind == "spm" or (row is not None and row.name in _ADD_BOS))
    return Tokenizer(
        kind=kind,  # type: ignore[arg-type]
        tokens=tuple(tokens[:size]),
        types=tuple(types[:size]),
        scores=tuple(scores[:size]) if kind == "spm" else (),
        merges=() if row is None else tuple(_list(keys, "merges", where)),
        splits=() if row is None else row.stages[0],
        ignore_merges=row is not None and row.ignore_merges,
        special=special,
        end_tokens=tuple(dict.fromkeys(special[role] for role in ("eos", "eot", "eom") if role in special)),
        add_bos=bool(add_bos),
        add_eos=bool(keys.get("tokenizer.ggml.add_eos_token", False)),
        add_space_prefix=bool(keys.get("tokenizer.ggml.add_space_prefix", kind == "spm")),
        chat_templates=({"default": template} if isinstance(template, str) else {}) | named,
    )


def _list(keys: Mapping[str, Any], name: str, where: str) -> Sequence[str]:
    found = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise FormatError("the vocabulary is not whole", where=where, expected=f"texts in tokenizer.ggml.{name}")
    return found


def _row(keys: Mapping[str, Any], where: str) -> PreTokenizer:
    name = keys.get("tokenizer.ggml.pre", "default")
    for row in table().rows:
        if row.name == name:
            return row
    raise TokenizerError(
        f"llama.cpp's pre-tokenizer {name!r} has no known pattern outside of it",
        where=where,
        expected=", ".join(row.name for row in table().rows),
        fix="--tokenizer with the tokenizer's own files",
    )


def _special(keys: Mapping[str, Any], size: int, where: str) -> dict[str, int]:
    found = {role: keys.get(f"tokenizer.ggml.{key}") for role, key in ID_KEYS.items()}
    special = {role: int(number) for role, number in found.items() if isinstance(number, int)}
    beyond = {ID_KEYS[role]: number for role, number in special.items() if not 0 <= number < size}
    if beyond:
        raise FormatError(
            "special tokens that do not exist",
            where=where,
            expected=f"ids below {size}",
            got=", ".join(f"{key} {number}" for key, number in beyond.items()),
        )
    return special
