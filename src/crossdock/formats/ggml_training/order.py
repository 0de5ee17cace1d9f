"""In which order an optimizer's flat vectors hold the parameters: found from its own copy of them.

ggml's optimizer strung the parameters together as it met them in the compute graph, so the order hangs on program and
flags, and no file says it. A few values at each end of each tensor are read; whoever uses the order compares the rest.
Orders as the programs themselves printed them: train-text-from-scratch at 43033b7, 44c117f, 4760e7c, finetune at
1a5f0a3, 4760e7c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from crossdock.formats.stored import Source, StoredTensor
from crossdock.io.files import read_exact, reading

_PROBE = 32  # values read at each end of a tensor
_DOWN = ("ffn_down", "ffn_gate", "ffn_norm", "attn_output")
# what comes before the embedding, from the last layer to the first; what comes behind it, from the first to the last
TRAINERS = ((*_DOWN, "attn_q", "attn_norm"), ("attn_k", "attn_v", "ffn_up"))
_NO_FLASH = ((*_DOWN, "attn_norm"), ("attn_v", "attn_k", "attn_q", "ffn_up"))
# where the backward pass recomputes: the embedding, the layers in their order, norm and output
_SCRATCH = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down")
_NO_CHECKPOINTS = (
    "attn_v", "attn_norm", "attn_k", "attn_q", "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down",
)  # fmt: skip

Pieces = tuple[tuple[int, int], ...]


def trainers_order(parameters: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """The order of GGUF's trainers with their default flags, 44c117f to 4760e7c, as names of `parameters`."""
    return _named(_backward(_layers(parameters), TRAINERS), parameters)


def recovered_order(source: Source, parameters: Mapping[str, StoredTensor], copy: StoredTensor) -> tuple[str, ...]:
    """The names in the order in which `copy`, the optimizer's own parameters, holds them; () when that cannot be told.

    Known orders are tried first; else the tensors are looked for one behind the other.
    """
    with reading(source.root) as fd:

        def probe(stored: StoredTensor, first: int, count: int) -> bytes:
            return read_exact(fd, stored.extents[0].offset + 4 * first, 4 * count, str(source.root))

        sizes = {name: math.prod(stored.shape) for name, stored in parameters.items()}
        ends = {name: tuple(probe(stored, *at) for at in _ends(sizes[name])) for name, stored in parameters.items()}

        def fits(name: str, at: int) -> bool:
            if at + sizes[name] > copy.shape[0]:
                return False
            found = tuple(probe(copy, at + first, count) for first, count in _ends(sizes[name]))
            return found == ends[name]

        found = {
            order for order in _known(parameters) if all(fits(name, at) for name, at in _starts(order, sizes))
        }  # fmt: skip
        if found:
            return found.pop() if len(found) == 1 else ()
        order: list[str] = []
        at, left = 0, dict.fromkeys(parameters)
        while left:
            head = probe(copy, at, min(_PROBE, copy.shape[0] - at))
            alike = [name for name in left if head.startswith(ends[name][0]) and fits(name, at)]
            if len(alike) != 1:
                return ()
            order.append(alike[0])
            at += sizes[alike[0]]
            del left[alike[0]]
        return tuple(order)


def pieces(now: Sequence[str], wanted: Sequence[str], parameters: Mapping[str, StoredTensor]) -> Pieces:
    """Where in a vector of order `now` the pieces of order `wanted` lie: (first element, count) each."""
    sizes = {name: math.prod(stored.shape) for name, stored in parameters.items()}
    starts = dict(_starts(now, sizes))
    return tuple((starts[name], sizes[name]) for name in wanted)


def _ends(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    count = min(_PROBE, size)
    return (0, count), (size - count, count)


def _starts(order: Sequence[str], sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    at = 0
    for name in order:
        yield name, at
        at += sizes[name]


def _known(parameters: Mapping[str, StoredTensor]) -> Iterator[tuple[str, ...]]:
    layers = _layers(parameters)
    for halves in (TRAINERS, _NO_FLASH):
        yield _named(_backward(layers, halves), parameters)
    for inside in (_SCRATCH, _NO_CHECKPOINTS):
        inner = [f"blk.{layer}.{name}" for layer in range(layers) for name in inside]
        yield _named(["token_embd", *inner, "output_norm", "output"], parameters)


def _backward(layers: int, halves: tuple[tuple[str, ...], tuple[str, ...]]) -> list[str]:
    before = [f"blk.{layer}.{name}" for layer in reversed(range(layers)) for name in halves[0]]
    behind = [f"blk.{layer}.{name}" for layer in range(layers) for name in halves[1]]
    return ["output", "output_norm", *before, "token_embd", *behind]


def _layers(parameters: Mapping[str, StoredTensor]) -> int:
    return 1 + max(int(name.split(".")[1]) for name in parameters if name.startswith("blk."))


def _named(stems: Sequence[str], parameters: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """Names of tensors for stems: the weight, or both halves of its pair."""
    ends = (".weight",) if f"{stems[0]}.weight" in parameters else (".weight.lora_a", ".weight.lora_b")
    return tuple(stem + end for stem in stems for end in ends)
