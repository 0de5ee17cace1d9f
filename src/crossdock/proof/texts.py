"""What `--logits` names, as windows of token ids: a text, a file, or the ids themselves.

Text is read by the library that owns the tokenizer that travels with the model, never by crossdock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossdock.errors import UsageError
from crossdock.planning.checkpoint import Checkpoint
from crossdock.proof import npy
from crossdock.proof.tokens import ids_by_llama, ids_by_source, tokenizer_of
from crossdock.tokenizers.files import TOKENIZER_JSON, TOKENIZER_MODEL, find, read_bytes, read_text
from crossdock.tokenizers.reading import read as read_tokenizer

WINDOW = 512  # tokens that are read at once, each window on its own from position 0
MOST = 4096  # tokens; a text may be longer, and is read this far
IDS = re.compile(r"\s*-?\d{1,9}\s*(,\s*-?\d{1,9}\s*)+,?\s*|\s*-?\d{1,9}\s*,\s*", re.ASCII)
LARGEST = 16 << 20  # bytes of a text


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids in windows. given: ids before the cut at `MOST`; reader: what made them of text."""

    windows: tuple[tuple[int, ...], ...]
    total: int
    reader: str


def read_asked(
    text_or_ids: str | Sequence[int],
    checkpoint: Checkpoint,
    output: Path,
    tokenizer: Path | None = None,
    *,
    whole: bool = False,
) -> Asked:
    """The windows that `text_or_ids` asks for: "1,2,3", "@ids.npy" or "ids.npy" (rows are windows), "@text.txt", a
    text, or ids. whole: a row is one window, however long it is.

    The tokenizer: the one given, else that of the source, else that of a folder `output`, else the vocabulary in a GGUF
    `output`, which llama.cpp reads. Raises UsageError, FormatError, TokenizerError, EnvironmentProblem.
    """
    reader = ""
    if not isinstance(text_or_ids, str):
        rows = [[int(number) for number in text_or_ids]]
    elif IDS.fullmatch(text_or_ids):
        rows = [[int(number) for number in text_or_ids.split(",") if number.strip()]]
    elif text_or_ids.endswith(".npy") and (text_or_ids.startswith("@") or Path(text_or_ids).is_file()):
        rows = _load(Path(text_or_ids.removeprefix("@")))
    else:
        text = _read(Path(text_or_ids[1:])) if text_or_ids.startswith("@") else text_or_ids
        reader, ids = _tokenize(text, checkpoint, output, tokenizer)
        rows = [ids]
    known = range(checkpoint.config.vocab_size)
    strange = [number for row in rows for number in row if number not in known]
    if strange:
        raise UsageError(
            "token ids out of range", expected=f"0 to {len(known) - 1}", got=str(strange[:5]),
            cause=f"a tokenizer of another model: {reader}" if reader else "",
        )  # fmt: skip
    size = checkpoint.config.max_position_embeddings
    size = max(size, MOST) if whole else min(WINDOW, size)
    windows, room = [], MOST
    for row in rows:
        taken = row[:room]
        room -= len(taken)
        windows += [tuple(taken[i : i + size]) for i in range(0, len(taken), size)]
    if not windows:
        raise UsageError("no tokens to compute logits for", got=repr(text_or_ids)[:80])
    return Asked(tuple(windows), sum(map(len, rows)), reader)


def _read(path: Path) -> str:
    read_bytes(path, LARGEST)
    return read_text(path)


def _load(path: Path) -> list[list[int]]:
    array = npy.load(path, "token ids")
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise UsageError("no token ids", where=str(path), expected="an array of integers, [n] or [windows, n]")
    return [[int(number) for number in row] for row in np.atleast_2d(array)[:, :MOST][:MOST]]


def _tokenize(text: str, checkpoint: Checkpoint, output: Path, tokenizer: Path | None) -> tuple[str, list[int]]:
    vocabularies = (TOKENIZER_JSON, TOKENIZER_MODEL)
    where = tokenizer_of(checkpoint, tokenizer)
    if where is None and output.is_dir() and any((output / name).is_file() for name in vocabularies):
        where = output
    if where is not None:
        reader, ids, _ = ids_by_source(find(where), read_tokenizer(where), [text], add_special=True)
        return reader, ids[0]
    if output.is_file() and output.suffix == ".gguf":
        return f"llama.cpp, {output}", ids_by_llama(output, [text], add_special=True, parse_special=True)[0]
    raise UsageError(
        "a text requires a tokenizer, and neither the source nor the output has one",
        fix="pass it with --tokenizer, or pass token ids: --logits 1,2,3",
    )
