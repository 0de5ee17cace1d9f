"""A vocabulary taken from another GGUF file, key by key or as a tokenizer. Reads the header only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from crossdock.errors import CrossdockError, FormatError, TokenizerError
from crossdock.formats.gguf.container import read_header
from crossdock.io.files import head_of
from crossdock.tokenizers.from_gguf import from_gguf

if TYPE_CHECKING:
    from crossdock.tokenizers.tokenizer import Tokenizer

# The keys of a model without one: the loader then takes token ids only, and makes `{arch}.vocab_size` unnamed tokens.
NO_VOCABULARY: Final = (("tokenizer.ggml.model", "STRING", "none"),)


def vocabulary_in(chosen: Path | None, companion_files: Sequence[Path]) -> Path | None:
    """The GGUF file that a model's vocabulary is taken from: what was given, or what the source brings along."""
    return next((path for path in (companion_files if chosen is None else (chosen,)) if is_gguf(path)), None)


def tokenizer_of(path: Path, vocab_size: int, vocab_from: str = "") -> Tokenizer:
    """The vocabulary of a GGUF file as a tokenizer. Raises what `vocabulary_of` and `from_gguf` raise."""

    return from_gguf({key: value for key, _, value in vocabulary_of(path, vocab_size, vocab_from)}, str(path))


def is_gguf(path: Path) -> bool:
    """Whether `path` is a regular file that begins as GGUF files do; never waits for a pipe."""
    try:
        if not path.is_file():
            return False
        return head_of(path, 4) == b"GGUF"
    except (OSError, CrossdockError):
        return False


def vocabulary_of(path: Path, vocab_size: int, vocab_from: str = "") -> list[tuple[str, str, Any]]:
    """The keys `tokenizer.*` of a GGUF file as (key, type, value), for a model of `vocab_size` tokens.

    Raises TokenizerError when there are none or they are for another number of tokens, FormatError for a broken file.
    """
    if not is_gguf(path):
        raise TokenizerError(
            "not a llama.cpp vocabulary",
            where=str(path),
            expected="a GGUF file: --tokenizer VOCAB.gguf",
        )
    header = read_header(path)
    keys = [(key, header.types[key], value) for key, value in header.metadata.items() if key.startswith("tokenizer.")]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise TokenizerError("this GGUF file has no vocabulary", where=str(path), expected="tokenizer.ggml.tokens")
    scores = header.metadata.get("tokenizer.ggml.scores")
    if isinstance(scores, Sequence | np.ndarray) and not np.isfinite(np.asarray(scores, np.float64)).all():
        raise FormatError("a score of the vocabulary is not a number", where=str(path), expected="finite scores")
    if len(tokens) != vocab_size:
        raise TokenizerError(
            "the vocabulary does not fit the model",
            where=str(path),
            expected=f"{vocab_size} tokens" + (f" ({vocab_from})" if vocab_from else ""),
            got=f"{len(tokens)}",
            fix="--tokenizer with the vocabulary that the model was trained with",
        )
    return keys
