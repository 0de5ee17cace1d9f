"""Hyper-connections: several residual streams, which a block reads as one and writes back to each.

What a stream gives to the block, takes from it, and hands to the other streams depends on the token. Formulas:
hyper-connections (arXiv 2409.19606), manifold-constrained ones (2512.24880); transformers 5.24 (deepseek_v4, hy_v4).
Knows no files.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossdock.model.layers.layer import Array, Layer, sigmoid, softmax, unit_rms


class Shares(NamedTuple):
    """How the streams take part in a block, for each token.

    taken  [n, streams]: what each stream takes of the block's output
    mixed  [n, streams, streams] (from, to): how the streams before the block make those behind it; None: each itself
    """

    taken: Array
    mixed: Array | None


def streams(x: Array, count: int) -> Array:
    """x [n, hidden_size] in every stream, [n, streams, hidden_size]."""
    return np.repeat(x[:, None], count, axis=1)


def gathered(layer: Layer, x: Array, part: str) -> tuple[Array, Shares]:
    """What the block `part` (attn or ffn) reads of the streams x, [n, hidden_size], and how they take its output."""
    config = layer.config
    count = config.hc_mult
    logits = _logits(layer, x, f"hc_{part}_fn")
    scale, base = layer.tensor(f"hc_{part}_scale"), layer.tensor(f"hc_{part}_base")
    offered = sigmoid(logits[:, :count] * scale[0] + base[:count]) + config.hc_eps
    taken = config.hc_magnitude * sigmoid(logits[:, count : 2 * count] * scale[1] + base[count : 2 * count])
    if not config.hc_sinkhorn_iters:
        return _sum(x, offered), Shares(taken + config.hc_eps, None)
    mixed = (logits[:, 2 * count :] * scale[2] + base[2 * count :]).reshape(-1, count, count)
    return _sum(x, offered), Shares(taken, _doubly_stochastic(mixed, config.hc_sinkhorn_iters, config.hc_eps))


def spread(x: Array, y: Array, by: Shares) -> Array:
    """The streams x behind a block that gave y [n, hidden_size]."""
    kept = x if by.mixed is None else np.einsum("nft,nfh->nth", by.mixed, x)
    return np.asarray(kept + by.taken[..., None] * y[:, None])


def merged(model: Layer, x: Array) -> Array:
    """The streams x as one, [n, hidden_size]."""
    logits = _logits(model, x, "hc_head_fn")
    share = sigmoid(logits * model.tensor("hc_head_scale")[0] + model.tensor("hc_head_base"))
    return _sum(x, share + model.config.hc_eps)


def _logits(layer: Layer, x: Array, name: str) -> Array:
    """A linear map of all streams together, over their root mean square."""
    return layer.linear(unit_rms(x.reshape(len(x), -1), layer.config.norm_eps), name)


def _sum(x: Array, share: Array) -> Array:
    return np.asarray((x * share[..., None]).sum(axis=1))


def _doubly_stochastic(logits: Array, iterations: int, eps: float) -> Array:
    """Rows and columns that sum to 1, nearly: each in turn is divided by its sum (Sinkhorn-Knopp)."""
    y = softmax(logits) + eps
    y = y / (y.sum(axis=-2, keepdims=True) + eps)
    for _ in range(iterations - 1):
        y = y / (y.sum(axis=-1, keepdims=True) + eps)
        y = y / (y.sum(axis=-2, keepdims=True) + eps)
    return np.asarray(y)
