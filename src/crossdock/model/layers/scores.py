"""From queries, keys and values to what each head sees: which keys are visible, and their softmax. Knows no weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.layer import Array, capped

Mask = NDArray[np.bool_]


def visible(config: ModelConfig, index: int, n: int) -> Mask:
    """[query, key]: the keys that a query sees in this layer: none after it, in its window, in its chunk."""
    query, key = np.arange(n)[:, None], np.arange(n)
    seen = key <= query
    kind = config.layer_type(index)
    if kind == "sliding_attention" and config.sliding_window is not None:
        seen &= query - key < config.sliding_window
    if kind == "chunked_attention" and config.attention_chunk_size is not None:
        seen &= query // config.attention_chunk_size == key // config.attention_chunk_size
    return seen


def attend(
    q: Array,
    k: Array,
    v: Array,
    seen: Mask,
    scale: float,
    *,
    cap: float | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
) -> Array:
    """q [n, heads, d], k [n, groups, d], v [n, groups, e] -> [n, heads, e], one head's scores at a time.

    bias   added to the scores of each head, [heads, 1 or n, n]
    sinks  a score of each head that takes part in the softmax and has no value, [heads]
    """
    per_group = q.shape[1] // k.shape[1]
    out = np.empty((*q.shape[:2], v.shape[2]), q.dtype)
    for head in range(q.shape[1]):
        group = head // per_group
        scores = capped(q[:, head] @ k[:, group].T * scale, cap)
        if bias is not None:
            scores = scores + bias[head]
        scores = np.where(seen, scores, -np.inf)
        largest = scores.max(axis=-1, keepdims=True)
        if sinks is not None:
            largest = np.maximum(largest, sinks[head])
        share = np.exp(scores - largest)
        total = share.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[head] - largest)
        out[:, head] = share / total @ v[:, group]
    return out
