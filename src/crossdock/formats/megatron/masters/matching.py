"""Which weights lie where in an optimizer's flat float32 vectors: by their first values, rounded, then by order.

A vector holds weights one behind the other, last registered first, each from a multiple of 64 elements on
(Megatron-LM d98e8a6, `core/optimizer/distrib_optimizer.py`, `_compute_per_buffer_param_layout`; 0.13 to 0.20 dev); it
does not name them. What is found here is a proposal: the plan proves it by rounding every value. Where weights round to
the same values, as norms that hardly moved from one do, the order in which Megatron registers them tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np

from crossdock.formats.megatron.masters.samples import Samples
from crossdock.formats.stored import Extent, StoredTensor

ALIGNMENT = 64  # elements, to a multiple of which the start of a weight is padded
HEAD = 64  # values of a weight that are compared
SHORT = 16  # of them, those that it is looked up by
ROUNDED = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_LAYER = re.compile(r"layers\.(\d{1,9})\.")
# the order in which the parts of a layer are registered (transformer_layer.py, attention.py, multi_latent_attention.py)
_REGISTERED = (
    "input_layernorm", "self_attention.linear_proj", "self_attention.linear_qkv", "self_attention.linear_q_",
    "self_attention.linear_kv_", "self_attention.q_layernorm", "self_attention.k", "pre_mlp_layernorm", "mlp.router",
    "mlp.linear_fc1", "mlp.experts.", "linear_fc1", "linear_fc2",
)  # fmt: skip

Key = tuple[str, str]  # part, name
Place = tuple[Key, tuple[int, ...]]  # a weight's box by the index of its first element
Order = tuple[float, int]


@dataclass(frozen=True, slots=True)
class Weight:
    """A box of a stored tensor that was one parameter of one rank, or one of several in a row.

    head   its first values as they are stored
    order  the larger, the later it is registered
    """

    key: Key
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    count: int
    dtype: str
    head: bytes
    order: Order

    @property
    def place(self) -> Place:
        """What tells it from all other boxes."""
        return self.key, self.origin


class Found(NamedTuple):
    """A weight and the vector's element that it begins at. ambiguous: others round to the same first values."""

    start: int
    weight: Weight
    ambiguous: bool


class Index:
    """Weights by their first values."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self._by_head: dict[tuple[str, bytes], list[Weight]] = {}
        self._lengths: dict[str, set[int]] = {}
        for weight in weights:
            size = np.dtype(ROUNDED[weight.dtype]).itemsize
            head = weight.head[: SHORT * size]
            self._lengths.setdefault(weight.dtype, set()).add(len(head) // size)
            self._by_head.setdefault((weight.dtype, head), []).append(weight)

    def beginning(self, values: np.ndarray, left: int) -> list[Weight]:
        """The weights that the vector may go on with. values: its next ones; left: how many there are in all."""
        out = []
        for dtype, lengths in self._lengths.items():
            with np.errstate(over="ignore"):
                rounded = values[:HEAD].astype(ROUNDED[dtype])
            size = rounded.itemsize
            for length in sorted(lengths, reverse=True):
                for weight in self._by_head.get((dtype, rounded[:length].tobytes()), ()):
                    if weight.count <= left and weight.head == rounded[: len(weight.head) // size].tobytes():
                        out.append(weight)
        return out


def weights_in(tensors: Mapping[Key, StoredTensor], samples: Samples) -> list[Weight]:
    """The boxes of every tensor of a lower precision than float32, with their first values."""
    out = []
    for key, stored in tensors.items():
        if stored.dtype not in ROUNDED:
            continue
        for extent in stored.extents:
            count = int(np.prod(extent.shape, dtype=np.int64))
            if count and extent.strides is None and extent.wrapping != "safetensors":
                head = samples.read(extent, stored.dtype, 0, min(count, HEAD))
                order = _order(key[1], extent)
                out.append(Weight(key, extent.origin, extent.shape, count, stored.dtype, head, order))
    return out


def walk(
    extents: Sequence[Extent], borders: Sequence[int], index: Index, read: Samples, elsewhere: Set[Place]
) -> list[Found]:
    """The weights that lie in a vector that `extents` hold, in turn, up to the first place where none fits.

    borders    elements at which a weight may end, in ascending order; empty where the file does not say
    elsewhere  boxes that other vectors have already: of several that are alike, the others are taken
    """
    count = extents[-1].origin[0] + extents[-1].shape[0]
    ends, used, found = set(borders), set(), []
    at, last = 0, (float("inf"), 0)
    while at < count:
        window = read.flat(extents, at, min(count, at + ALIGNMENT + HEAD))
        fitting: list[Weight] = []
        skipped = 0
        for skipped in range(min(ALIGNMENT, len(window))):
            left = count - at - skipped
            fitting = [one for one in index.beginning(window[skipped:], left) if one.place not in used]
            if fitting:
                break
        if not fitting:
            break
        start = at + skipped
        exact = [one for one in fitting if start + one.count in ends] or fitting
        chosen = _next(exact, last, elsewhere)
        found.append(Found(start, chosen, len(exact) > 1))
        used.add(chosen.place)
        at, last = start + chosen.count, chosen.order
    return found


def in_order(
    vectors: Sequence[Extent], index: Index, read: Samples, elsewhere: Set[Place]
) -> Iterator[tuple[Found, Extent]]:
    """The weight that each of `vectors` is, which come in the order of registration; none where none fits."""
    used, last = set(), (-float("inf"), 0)
    for extent in vectors:
        count = extent.shape[0]
        beginning = index.beginning(read.flat((extent,), 0, min(count, HEAD)), count)
        fitting = [one for one in beginning if one.count == count and one.place not in used]
        if fitting:
            above = [one for one in fitting if one.order >= last]
            chosen = min(above or fitting, key=lambda one: (one.order, one.place in elsewhere, one.origin))
            used.add(chosen.place)
            last = chosen.order
            yield Found(0, chosen, len(fitting) > 1), extent


def _next(fitting: list[Weight], last: Order, elsewhere: Set[Place]) -> Weight:
    """The one that comes next in the reverse order of registration."""
    below = [one for one in fitting if one.order <= last] or fitting
    latest = max(one.order for one in below)
    alike = [one for one in below if one.order == latest]
    return min(alike, key=lambda one: (one.place in elsewhere, one.origin))


def _order(name: str, extent: Extent) -> Order:
    layer = _LAYER.search(name)
    if name.startswith("embedding."):
        number = -1.0
    elif layer is not None:
        number = float(layer[1])
    elif name.startswith("decoder.layers."):
        number = float(extent.origin[0])
    else:
        number = float("inf")
    place = next((i for i, part in enumerate(_REGISTERED) if part in name), len(_REGISTERED))
    return number, place
