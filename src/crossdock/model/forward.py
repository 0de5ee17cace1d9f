"""The reference forward: what a canonical configuration and canonical tensors compute, with numpy.

It is the definition of what the fields of `ModelConfig` mean, in the precision of the weights: float32 from files.
It reads no file: `Weights` hands it the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from crossdock.errors import UsageError
from crossdock.model.attention import attention
from crossdock.model.config import ModelConfig
from crossdock.model.mlp import mlp
from crossdock.model.rope import Rotation, rotation
from crossdock.model.rounding import Array
from crossdock.model.sums import product
from crossdock.model.tensors import Model, Weights, capped, linear, norm
from crossdock.model.work import multiply_adds

ORDERED = 1 << 29  # multiply-adds, which take half a second in order


def forward(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> Array:
    """Logits [n, vocab_size], of one sequence of n token ids at positions 0 to n - 1. Raises as `hidden`."""
    return logits(config, weights, hidden(config, weights, tokens))


@np.errstate(all="ignore")  # of what is not finite comes nan: a finding for who compares, no warning
def logits(config: ModelConfig, weights: Weights, x: Array, rows: slice = slice(None)) -> Array:
    """Logits [rows, vocab_size], of `rows` of what `hidden` gives."""
    model = _model(config, weights, len(x))
    return capped(linear(model, norm(model, x[rows], "norm"), "head"), config.final_logit_softcapping)


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
    model = _model(config, weights, ids.size)
    x = weights.rows("embed", ids)
    if config.scale_embedding:
        x = x * math.sqrt(config.hidden_size)
    if learned:
        x = x + weights.rows("pos_embed", np.arange(ids.size))
    by = None if learned else rotation(config, ids.size)
    for layer in range(config.num_hidden_layers):
        x = _layer(model, layer, x, by)
    return x


def _model(config: ModelConfig, weights: Weights, n: int) -> Model:
    """Small forwards add up products in PyTorch's order, which takes numpy a hundred times as long as BLAS."""
    return Model(config, weights, product if multiply_adds(config, n) <= ORDERED else np.matmul)


def _layer(model: Model, layer: int, x: Array, by: Rotation | None) -> Array:
    """The residual stream x [n, hidden_size] behind `layer`."""
    config = model.config
    attended = x
    if config.has_attention(layer):
        normed = norm(model, x, "attn_norm", layer)
        y = attention(model, layer, normed, by)
        attended = x + (norm(model, y, "attn_post_norm", layer) if config.post_norms else y)
    if not config.has_mlp(layer):
        return attended
    if config.num_ln_in_parallel_attn == 2:
        normed = norm(model, x if config.parallel_attn else attended, "ffn_norm", layer)
    y = mlp(model, layer, normed)
    return attended + (norm(model, y, "ffn_post_norm", layer) if config.post_norms else y)
