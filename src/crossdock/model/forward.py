"""The reference forward: what a canonical configuration and canonical tensors compute, with numpy.

It is the definition of what the fields of `ModelConfig` mean, in the precision of the weights: float32 from files.
It reads no file: `Weights` hands it the tensors. docs/decisions/0005 states how far float32 may lie from the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crossdock.errors import UsageError
from crossdock.model.config import ModelConfig
from crossdock.model.layers.attention import attention
from crossdock.model.layers.layer import Array, Layer, Weights, capped
from crossdock.model.layers.mlp import mlp
from crossdock.model.layers.rope import Rotation, rotation


def forward(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> Array:
    """Logits [n, vocab_size], of one sequence of n token ids at positions 0 to n - 1. Raises as `hidden`."""
    return logits(config, weights, hidden(config, weights, tokens))


@np.errstate(all="ignore")  # NaN and Inf propagate; the comparison reports them
def logits(config: ModelConfig, weights: Weights, x: Array, rows: slice = slice(None)) -> Array:
    """Logits [rows, vocab_size], of `rows` of what `hidden` returns."""
    model = Layer(config, weights)
    return capped(model.linear(model.norm(x[rows], "norm"), "head"), config.final_logit_softcapping)


@np.errstate(all="ignore")
def hidden(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> Array:
    """The residual stream behind the last layer, [n, hidden_size], of n token ids at positions 0 to n - 1.

    Raises UsageError for an empty sequence, one longer than learned positions, an id outside the vocabulary.
    """
    ids = np.asarray(tokens, np.int64)
    learned = config.position_embedding == "learned"
    if not ids.size or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise UsageError("no token ids of this model", expected=f"0 to {config.vocab_size - 1}", got=str(tokens)[:80])
    if learned and ids.size > config.max_position_embeddings:
        raise UsageError("more tokens than positions", expected=f"{config.max_position_embeddings} at most")
    x = weights.rows("embed", ids)
    if config.scale_embedding:
        x = x * math.sqrt(config.hidden_size)
    if learned:
        x = x + weights.rows("pos_embed", np.arange(ids.size))
    by = None if learned else rotation(config, ids.size)
    for index in range(config.num_hidden_layers):
        x = _block(Layer(config, weights, index), index, x, by)
    return x


def _block(layer: Layer, index: int, x: Array, by: Rotation | None) -> Array:
    """The residual stream x [n, hidden_size] behind one layer: attention, then the MLP, each added to it."""
    config = layer.config
    attended = x
    if config.has_attention(index):
        normed = layer.norm(x, "attn_norm")
        y = attention(layer, index, normed, by)
        attended = x + (layer.norm(y, "attn_post_norm") if config.post_norms else y)
    if not config.has_mlp(index):
        return attended
    if config.num_ln_in_parallel_attn == 2:
        normed = layer.norm(x if config.parallel_attn else attended, "ffn_norm")
    y = mlp(layer, index, normed)
    return attended + (layer.norm(y, "ffn_post_norm") if config.post_norms else y)
