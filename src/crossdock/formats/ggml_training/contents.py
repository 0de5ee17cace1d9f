"""What a ggcp or ggcl file holds, from its headers: the numbers at its start, its tensors by position, its optimizer.

Reads no tensor data and believes no name: before 2023-06-27 long names were copied without their end. Facts: llama.cpp
e32089b to 43033b7 for ggcp (train-text-from-scratch.cpp), 28ee0c8 to 0564f4e for ggcl (finetune.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from crossdock.errors import FormatError
from crossdock.formats.ggml_training.optimizer import Optimizer, read_optimizer
from crossdock.formats.ggml_training.records import Record, Words
from crossdock.io.files import reading

Kind = Literal["ggcp", "ggcl"]
MAGICS: Mapping[bytes, Kind] = {b"pcgg": "ggcp", b"lcgg": "ggcl"}
_SIZES = ("train_its", "train_samples", "train_tokens", "n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot")
# the twelve ranks in the order of the header, by GGUF's names
RANKS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up",
    "token_embd", "output_norm", "output",
)  # fmt: skip
OUTSIDE = ("token_embd", "output_norm", "output")
INSIDE = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")
_WIDE, _FFN = -1, -2  # placeholders for n_embd and n_ff; -3: n_vocab
_SHAPES: Mapping[str, tuple[int, ...]] = {  # (in, out) of a matrix as ggml counts; of a norm its width alone
    "token_embd": (-1, -3), "output_norm": (-1,), "output": (-1, -3), "attn_norm": (-1,), "attn_q": (-1, -1),
    "attn_k": (-1, -1), "attn_v": (-1, -1), "attn_output": (-1, -1), "ffn_norm": (-1,), "ffn_gate": (-1, -2),
    "ffn_down": (-2, -1), "ffn_up": (-1, -2),
}  # fmt: skip
_OLD_NAMES: Mapping[str, str] = {
    "token_embd": "tok_embeddings", "output_norm": "norm", "output": "output", "attn_norm": "attention_norm",
    "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv", "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """A whole file. sizes: the header's numbers and n_ff, which the tensors say; not all headers have n_mult.

    ranks    of ggcl, by tensor; tensors: name in GGUF -> record, in the file's order
    strange  how many tensors have another name in the file than their position says
    """

    kind: Kind
    sizes: Mapping[str, int]
    ranks: Mapping[str, int]
    tensors: Mapping[str, Record]
    optimizer: Optimizer | None
    strange: int


def read_contents(path: Path) -> Contents:
    """Read a file up to its last byte, headers only. Raises FormatError that names the byte where it goes wrong."""
    with reading(path) as fd:
        words = Words(fd, str(path))
        kind = MAGICS.get(words.take(4, "the magic number"))
        if kind is None:
            raise words.error("neither ggcp nor ggcl", 0, expected=" or ".join(map(repr, MAGICS)))
        (version,) = words.integers("I", "the version")
        if version:
            raise words.error("unknown file version", 4, expected="0", got=f"{version:,}")
        sizes, ranks = _header(words, kind)
        tensors: dict[str, Record] = {}
        strange = 0
        for name, old, record in _tensors(words, sizes, ranks):
            tensors[name] = record
            strange += record.name not in (name.encode(), old.encode())
        parameters = sum(prod(record.ne) for record in tensors.values())
        optimizer = None if words.at == words.size else read_optimizer(words, parameters)
        if optimizer is None and kind == "ggcl":
            raise words.error("the file ends before the optimizer", cause="a trainer that was killed while it saved")
        return Contents(kind, sizes, ranks, tensors, optimizer, strange)


def _header(words: Words, kind: Kind) -> tuple[dict[str, int], dict[str, int]]:
    """The numbers at the start, and the ranks. Whether there is an n_mult shows in what follows."""
    begin = words.at
    if kind == "ggcp":
        return _checked(words, begin, dict(zip(_SIZES, words.integers("9I", "the header"), strict=True))), {}
    failed: FormatError | None = None
    for names in (_SIZES, tuple(name for name in _SIZES if name != "n_mult")):
        words.at = begin
        try:
            numbers = words.integers(f"{len(names) + len(RANKS)}I", "the header")
            sizes = _checked(words, begin, dict(zip(names, numbers, strict=False)))
            ranks = dict(zip(RANKS, numbers[len(names) :], strict=True))
            first = words.moved(words.at)
            first.record("the first tensor", (ranks["token_embd"], sizes["n_embd"]))
            first.record("the second tensor", (ranks["token_embd"], sizes["n_vocab"]))
            return sizes, ranks
        except FormatError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _checked(words: Words, begin: int, sizes: dict[str, int]) -> dict[str, int]:
    wrong = [name for name in ("n_vocab", "n_embd", "n_head", "n_layer", "n_rot") if not 0 < sizes[name] < 1 << 31]
    if wrong or sizes["n_embd"] % sizes["n_head"] or 12 * sizes["n_layer"] > words.size:
        raise words.error(
            "implausible model dimensions",
            begin,
            got=", ".join(f"{name}={number:,}" for name, number in sizes.items()),
            cause="a damaged file",
        )
    return sizes


def _tensors(words: Words, sizes: dict[str, int], ranks: Mapping[str, int]) -> Iterator[tuple[str, str, Record]]:
    """Every tensor by its name in GGUF and its old name. Sets n_ff when the first feed-forward tensor is met."""
    places = [(name, "", "") for name in OUTSIDE]
    places += [(name, f"blk.{i}.", f"layers.{i}.") for i in range(sizes["n_layer"]) for name in INSIDE]
    for name, block, old in places:
        new_name, old_name = f"{block}{name}.weight", f"{old}{_OLD_NAMES[name]}.weight"
        shape = _SHAPES[name]
        if not ranks:
            yield new_name, old_name, _record(words, new_name, shape, sizes)
            continue
        into, out = (shape[0], 1) if len(shape) == 1 else shape
        for half, old_half, width in ((".lora_a", ".loraA", into), (".lora_b", ".loraB", out)):
            record = _record(words, new_name + half, (ranks[name], width), sizes)
            yield new_name + half, old_name + old_half, record


def _record(words: Words, name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> Record:
    if _FFN in shape and "n_ff" not in sizes:
        ahead = words.moved(words.at).record(name, None)  # the tensor itself says how wide the feed-forward part is
        if len(ahead.ne) != 2:
            raise words.error(f"{name} is not a matrix", ahead.at, got=f"{len(ahead.ne)} dimensions")
        sizes["n_ff"] = ahead.ne[shape.index(_FFN)]
    wide = {_WIDE: sizes["n_embd"], _FFN: sizes.get("n_ff", 0), -3: sizes["n_vocab"]}
    return words.record(name, tuple(wide.get(size, size) for size in shape))
