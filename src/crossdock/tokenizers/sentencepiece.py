"""SentencePiece's tokenizer.model, read and written: pieces, scores, types and the normalizer's flags.

Reads BPE models (GGUF model "llama") and Unigram models (GGUF model "t5"); refuses word and character models,
which no GGUF engine has. Field numbers and defaults from google/sentencepiece `src/sentencepiece_model.proto`
(0.2).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as made_by
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.errors import FormatError, Problem
from crossdock.tokenizers.files import MAX_MODEL_SIZE, read_bytes
from crossdock.tokenizers.protobuf import BYTES, FIXED32, VARINT, Value, WireError, field, fields
from crossdock.tokenizers.tokenizer import MAX_TOKENS, Tokenizer, TokenType
from crossdock.tokenizers.vocabulary import (
    NO_BYTE_FALLBACK,
    NO_BYTE_TOKENS,
    SPACE,
    Token,
    Vocabulary,
    difference,
    is_byte_token,
    refuse,
)

UNIGRAM, BPE = 1, 2
KINDS = {int(kind): kind for kind in TokenType}
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

# field number → (name, wire type, default)
TRAINER = {
    3: ("model_type", VARINT, UNIGRAM),
    24: ("treat_whitespace_as_suffix", VARINT, 0),
    35: ("byte_fallback", VARINT, 0),
    40: ("unk_id", VARINT, 0),
    41: ("bos_id", VARINT, 1),
    42: ("eos_id", VARINT, 2),
    43: ("pad_id", VARINT, -1),
}
DEFAULTS = {name: default for name, _, default in TRAINER.values()}
NORMALIZER = {
    1: ("name", BYTES, b""),
    2: ("precompiled_charsmap", BYTES, b""),
    3: ("add_dummy_prefix", VARINT, 1),
    4: ("remove_extra_whitespaces", VARINT, 1),
    5: ("escape_whitespaces", VARINT, 1),
    6: ("normalization_rule_tsv", BYTES, b""),
}


@dataclass(frozen=True, slots=True)
class _Model:
    pieces: tuple[Token, ...]
    trainer: dict[str, Any] = made_by(default_factory=dict)
    normalizer: dict[str, Any] = made_by(default_factory=dict)
    sections: frozenset[int] = frozenset()


def read_sentencepiece(path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer.model.

    Raises FormatError when the file is not such a model (a tiktoken rank list is also called
    tokenizer.model), and TokenizerError for kinds that cannot be carried over.
    """
    try:
        model = _parse(memoryview(read_bytes(path, MAX_MODEL_SIZE)))
    except WireError as error:
        raise FormatError(
            f"not a SentencePiece model: {error}",
            where=str(path),
            cause="a truncated file, or another one of that name",
            fix="pass the tokenizer.json of the same tokenizer instead",
        ) from None
    if broken := _broken(model):
        raise FormatError(
            [Problem(what, where=str(path), got=got, cause="a truncated or edited file") for what, got in broken]
        )
    kind = model.trainer["model_type"]
    if kind not in (UNIGRAM, BPE):
        name = MODEL_TYPES.get(kind, f"number {kind}")
        raise refuse("GGUF engines do not support this kind of model", path, expected="bpe or unigram", got=name)
    if model.trainer["treat_whitespace_as_suffix"]:
        raise refuse("llama.cpp cannot put the space mark behind words (treat_whitespace_as_suffix)", path)
    if not model.normalizer["escape_whitespaces"]:
        raise refuse("llama.cpp always writes spaces as ▁ (escape_whitespaces is false)", path)
    return Vocabulary(
        kind="spm" if kind == BPE else "unigram",
        tokens=dict(enumerate(model.pieces)),
        special=_special(model),
        add_space_prefix=bool(model.normalizer["add_dummy_prefix"]),
        remove_extra_whitespaces=bool(model.normalizer["remove_extra_whitespaces"]),
        charsmap=bytes(model.normalizer["precompiled_charsmap"]),
        symbols=tuple(n for n, piece in enumerate(model.pieces) if piece.type == TokenType.USER_DEFINED),
        differences=_differences(model, path),
    )


def sentencepiece_model(tokenizer: Tokenizer) -> bytes:
    """A tokenizer of the kind "spm" as a model of SentencePiece, which joins by the same scores."""
    pieces = bytearray()
    for text, score, kind in zip(tokenizer.tokens, tokenizer.scores, tokenizer.types, strict=True):
        escaped = text.replace(" ", SPACE) if kind == TokenType.USER_DEFINED else text
        pieces += field(1, field(1, escaped.encode()) + field(2, score) + field(3, int(kind)))
    ids = {number: tokenizer.special.get(name.removesuffix("_id"), -1) for number, (name, _, _) in TRAINER.items()
           if name.endswith("_id")}  # fmt: skip
    ids[40] = tokenizer.types.index(int(TokenType.UNKNOWN)) if int(TokenType.UNKNOWN) in tokenizer.types else -1
    trainer = {3: BPE, 35: int(int(TokenType.BYTE) in tokenizer.types), **ids}
    normalizer = {3: int(tokenizer.add_space_prefix), 4: 0, 5: 1}
    messages = (b"".join(field(*one) for one in part.items()) for part in (trainer, normalizer))
    return bytes(pieces) + b"".join(field(number, message) for number, message in enumerate(messages, 2))


def _parse(data: memoryview) -> _Model:
    pieces: list[Token] = []
    trainer: dict[str, Any] = {name: default for name, _, default in TRAINER.values()}
    normalizer: dict[str, Any] = {name: default for name, _, default in NORMALIZER.values()}
    sections = set()
    for number, wire, value in fields(data):
        sections.add(number)
        if number == 1:
            if len(pieces) >= MAX_TOKENS:
                raise WireError(f"more than {MAX_TOKENS} pieces")
            pieces.append(_piece(_message(number, wire, value), len(pieces)))
        elif number == 2:
            trainer |= _settings(_message(number, wire, value), TRAINER)
        elif number == 3:
            normalizer |= _settings(_message(number, wire, value), NORMALIZER)
    if not pieces:
        raise WireError("it has no pieces")
    return _Model(tuple(pieces), trainer, normalizer, frozenset(sections))


def _broken(model: _Model) -> list[tuple[str, str]]:
    """What google/sentencepiece refuses to load (0.2, `model_interface.cc` and `normalizer.cc`): (what, got)."""
    found: list[tuple[str, str]] = []
    if not {2, 3} <= model.sections:
        found.append(("the trainer's or the normalizer's section is missing", f"{len(model.pieces)} pieces alone"))
    kinds = Counter(piece.type for piece in model.pieces)
    ordinary = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    for group in (True, False):
        counts = Counter(piece.text for piece in model.pieces if (piece.type in ordinary) == group)
        if twice := [text for text, count in counts.items() if count > 1]:
            found.append((f"{len(twice)} pieces are duplicates", repr(twice[0][:40])))
    if any(not piece.text for piece in model.pieces):
        found.append(("a piece is empty", repr(next(n for n, piece in enumerate(model.pieces) if not piece.text))))
    if kinds[TokenType.UNKNOWN] != 1:
        found.append(("not one unknown piece", f"{kinds[TokenType.UNKNOWN]} of them"))
    wanted = 256 if model.trainer["byte_fallback"] else 0
    if kinds[TokenType.BYTE] != wanted:
        flag = f"byte_fallback is {str(bool(wanted)).lower()}"
        found.append((f"{flag}, which takes {wanted} byte pieces", f"{kinds[TokenType.BYTE]} of them"))
    charsmap = bytes(model.normalizer["precompiled_charsmap"])
    if charsmap and not is_charsmap(charsmap):
        found.append(("the normalizer's map is broken", f"{len(charsmap):,} bytes"))
    for name in ("bos", "eos", "pad"):
        number, default = model.trainer[f"{name}_id"], DEFAULTS[f"{name}_id"]
        if number >= len(model.pieces) and number != default:
            found.append((f"{name}_id is not a piece", f"{number} of {len(model.pieces)}"))
    return found


def is_charsmap(data: bytes) -> bool:
    """Whether this is a normalization map: the size of a tree in bytes, the tree, texts that each end in a zero byte.

    The tree is a double array of darts-clone (32-bit units): a unit with the highest bit set holds the place of a text,
    any other the way to its children, of which there may be 256 in a row.
    """
    size = int.from_bytes(data[:4], "little")
    texts = len(data) - 4 - size
    if size < 1024 or size % 1024 or texts < 1:
        return False
    units = np.frombuffer(data, "<u4", size // 4, 4)
    values = units >> 31 == 1
    offsets = (units >> 10) << ((units & (1 << 9)) >> 6)
    children = (np.arange(len(units), dtype=np.uint32) ^ offsets) | 0xFF
    return bool((units[values] & 0x7FFFFFFF < texts).all() and (children[~values] < len(units)).all())


def _message(number: int, wire: int, value: Value) -> memoryview:
    if wire != BYTES or not isinstance(value, memoryview):
        raise WireError(f"field {number} is not a message")
    return value


def _piece(message: memoryview, index: int) -> Token:
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    for number, wire, value in fields(message):
        if number == 1:
            try:
                text = bytes(_message(number, wire, value)).decode()
            except UnicodeDecodeError:
                raise WireError(f"piece {index} is not UTF-8") from None
        elif number == 2 and wire == FIXED32 and isinstance(value, memoryview):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind not in KINDS:
        raise WireError(f"piece {index} has unknown type {kind}")
    if not math.isfinite(score):
        raise WireError(f"piece {index} has score {score}")
    if kind == TokenType.BYTE and not (is_byte_token(text) and text[3:5].upper() == text[3:5]):
        raise WireError(f"byte piece {index} is written {text[:40]!r}")
    if kind == TokenType.USER_DEFINED:
        # Engines match these against raw text, where a space is a space.
        text = text.replace(SPACE, " ")
    return Token(text, KINDS[kind], score)


def _settings(message: memoryview, schema: dict[int, tuple[str, int, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, wire, value in fields(message):
        if number not in schema:
            continue
        name, expected, default = schema[number]
        if wire != expected:
            raise WireError(f"{name} has wire type {wire}")
        # int32 fields hold negative numbers as 64-bit two's complement.
        convert: Callable[[Any], Any] = _signed if isinstance(default, int) else bytes
        found[name] = convert(value)
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _special(model: _Model) -> dict[str, int]:
    ids = {name: model.trainer[f"{name}_id"] for name in ("bos", "eos", "unk", "pad")}
    return {name: token for name, token in ids.items() if 0 <= token < len(model.pieces)}


def _differences(model: _Model, path: Path) -> tuple[Problem, ...]:
    found = []
    user_defined = any(piece.type == TokenType.USER_DEFINED for piece in model.pieces)
    if user_defined and model.normalizer["add_dummy_prefix"]:
        what = "llama.cpp cuts text at user-defined tokens and puts a space before each part, not only the first"
        found.append(difference(what, path))
    if model.trainer["model_type"] == BPE:
        if model.normalizer["precompiled_charsmap"]:
            name = bytes(model.normalizer["name"]).decode("utf-8", "replace")
            what = f"llama.cpp does not normalize text for SentencePiece BPE; this model does ({name})"
            found.append(difference(what, path))
        if model.normalizer["remove_extra_whitespaces"]:
            what = "llama.cpp keeps runs of spaces for SentencePiece BPE; this model collapses them"
            found.append(difference(what, path))
        if not model.trainer["byte_fallback"]:
            found.append(difference(NO_BYTE_TOKENS, path))
    elif model.trainer["byte_fallback"]:
        found.append(difference(NO_BYTE_FALLBACK, path))
    return tuple(found)
