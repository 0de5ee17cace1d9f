"""What can be asked of a GGUF file, and of a training checkpoint in GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdock.formats.options import NextnOptions, TokenizerOptions
from crossdock.options import flag, option, path, text
from crossdock.tokenizers.pre_tokenizers import table


def _pre_tokenizers() -> Sequence[str]:

    return table().names


@dataclass(frozen=True, kw_only=True)
class GgufOptions(TokenizerOptions, NextnOptions):
    """What can be asked of a GGUF file.

    pre_tokenizer  llama.cpp's name of the tokenizer's splitting pattern; None: recognised
    mtp_only       layers for multi-token prediction alone, with embeddings, last norm and head: a draft model
    name           the model's name for people, general.name; None: what the source says
    metadata       a JSON file with further keys of information: `formats.gguf.about`
    """

    pre_tokenizer: str | None = option(
        None,
        text,
        "Pre-tokenizer (`list`: all).  [default: auto-detected]",
        "NAME",
        choices=_pre_tokenizers,
        replayed=True,
    )
    mtp_only: bool = option(False, flag, "Only layers for multi-token prediction, as a draft model.", replayed=True)
    name: str | None = option(None, text, "Name of the model for people.", "TEXT")
    metadata: Path | None = option(None, path, "JSON file of further general.* keys.", "FILE")


@dataclass(frozen=True, kw_only=True)
class GgufCheckpointOptions(TokenizerOptions):
    """keep_order: leave the optimizer's vectors in the order in which the source has them."""

    keep_order: bool = option(False, flag, "Keep the optimizer vectors' order.", replayed=True)
