"""The reference forward: what a canonical configuration and canonical tensors compute, with numpy.

It is the definition of what the fields of `ModelConfig` mean, in the precision of the weights: float32 from files.
It reads no file: `Weights` hands it the tensors. docs/decisions/0005 states how far float32 may lie from the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdock.errors import UsageError
from crossdock.model.config import ModelConfig
from crossdock.model.layers import hyper, per_layer
from crossdock.model.layers.attention import attention
from crossdock.model.layers.convolution import short_convolution
from crossdock.model.layers.delta import gated_delta_net, kimi_delta_attention
from crossdock.model.layers.layer import Array, Layer, Weights, capped
from crossdock.model.layers.mamba import mamba, mamba2
from crossdock.model.layers.mlp import mlp


def forward(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> Array:
    """Logits [n, vocab_size], of one sequence of n token ids at positions 0 to n - 1. Raises as `hidden`."""
    return logits(config, weights, hidden(config, weights, tokens))


@np.errstate(all="ignore")  # NaN and Inf propagate; the comparison reports them
def logits(config: ModelConfig, weights: Weights, x: Array, rows: slice = slice(None)) -> Array:
    """Logits [rows, vocab_size], of `rows` of what `hidden` returns."""
    model = Layer(config, weights)
    y = model.linear(model.norm(x[rows], "norm"), "head", bias=config.head_bias)
    return capped(y * config.logit_scale / config.logits_scaling, config.final_logit_softcapping)


@np.errstate(all="ignore")
def hidden(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> Array:
    """The residual stream behind the last layer, [n, hidden_size], of n token ids at positions 0 to n - 1.

    Raises UsageError for an empty sequence, one longer than learned positions, an id outside the vocabulary.
    """
    ids = np.asarray(tokens, np.int64)
    learned = config.position_embedding == "learned"
    if not ids.size or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise UsageError("token ids out of range", expected=f"0 to {config.vocab_size - 1}", got=str(tokens)[:80])
    if learned and ids.size > config.max_position_embeddings:
        raise UsageError("more tokens than positions", expected=f"{config.max_position_embeddings} at most")
    shared: dict[str, Any] = {}
    model = Layer(config, weights)
    x = weights.rows("embed", ids) * config.embedding_multiplier
    if config.scale_embedding:
        x = x * math.sqrt(config.hidden_size)
    if learned:
        x = x + weights.rows("pos_embed", np.arange(ids.size))
    if config.embed_norm:
        x = model.norm(x, "embed_norm")
    own = per_layer.inputs_of_layers(model, ids, x)
    if config.high_cycles:
        return _in_cycles(model, x)
    if config.altup_num_inputs:
        x = per_layer.copies(model, x)
    if config.hc_mult:
        x = hyper.streams(x, config.hc_mult)
    for index in range(config.num_hidden_layers):
        layer = Layer(config, weights, index, shared)
        x = _block(layer, x, None if own is None else own[:, index])
    if config.hc_mult:
        return hyper.merged(model, x)
    return per_layer.merged(model, x) if config.altup_num_inputs else x


def _in_cycles(model: Layer, x: Array) -> Array:
    """HRM: the first half of the layers refines a low state, again and again, before the second half sets the high one.

    The last norm is left to `logits`. Formula: arXiv 2506.21734; transformers 5.24 (hrm_text).
    """
    config, middle = model.config, model.config.num_hidden_layers // 2

    def through(layers: range, x: Array) -> Array:
        for index in layers:
            x = _block(Layer(config, model.weights, index), x, None)
        return x

    low, high = np.broadcast_to(model.tensor("low_state"), x.shape), x
    for cycle in range(config.high_cycles):
        if cycle:
            high = model.norm(high, "norm")
        for _ in range(config.low_cycles):
            low = model.norm(through(range(middle), low + high), "norm")
        high = through(range(middle, config.num_hidden_layers), high + low)
    return high


def _block(layer: Layer, x: Array, own: Array | None) -> Array:
    """The residual stream x [n, hidden_size] behind one layer, whose own input is `own` if it has one."""
    if layer.config.altup_num_inputs:
        return _block_of_copies(layer, x, own)
    if layer.config.hc_mult:
        return _block_of_streams(layer, x)
    y = _mixed_and_fed(layer, x)
    if own is not None:
        y = y + per_layer.add_layer_input(layer, y, own)
    return y * layer.tensor("layer_scale") if layer.config.layer_scale else y


def _mixed_and_fed(layer: Layer, x: Array) -> Array:
    """x plus what attention (or what is in its place) adds, plus what the MLP adds."""
    config, index = layer.config, layer.index
    mixed = x
    if config.has_mixer(index):
        normed = layer.norm(x, "attn_norm") if config.pre_norms else x
        y = _mixer(layer, normed)
        y = layer.norm(y, "attn_post_norm") if config.post_norms else y
        mixed = x + y * config.residual_multiplier
    if not config.has_mlp(index):
        return mixed
    stream = x if config.parallel_attn else mixed
    if config.num_ln_in_parallel_attn == 2:
        normed = layer.norm(stream, "ffn_norm") if config.pre_norms else stream
    y = mlp(layer, normed, stream)
    y = layer.norm(y, "ffn_post_norm") if config.post_norms else y
    return mixed + y * config.residual_multiplier


def _block_of_streams(layer: Layer, x: Array) -> Array:
    """As `_block`, of the streams x [n, streams, hidden_size]: each block reads them as one and writes to each."""
    one, shares = hyper.gathered(layer, x, "attn")
    x = hyper.spread(x, _mixer(layer, layer.norm(one, "attn_norm")), shares)
    one, shares = hyper.gathered(layer, x, "ffn")
    return hyper.spread(x, mlp(layer, layer.norm(one, "ffn_norm"), one), shares)


def _mixer(layer: Layer, x: Array) -> Array:
    """What mixes positions, by the type of the layer, for normed x [n, hidden_size]."""
    kind = layer.config.layer_type(layer.index)
    if kind == "mamba2_and_attention":
        return mamba2(layer, x) + attention(layer, x)
    others = {
        "gated_delta_net": gated_delta_net,
        "kimi_delta_attention": kimi_delta_attention,
        "mamba": mamba,
        "mamba2": mamba2,
        "short_convolution": short_convolution,
    }
    return others.get(kind, attention)(layer, x)


def _block_of_copies(layer: Layer, x: Array, own: Array | None) -> Array:
    """As `_block`, of the copies x [copies, n, hidden_size]: the layer works on one, the others follow it."""
    config = layer.config
    predicted = per_layer.predicted(layer, x)
    active = predicted[config.altup_active_idx]
    normed = layer.norm(active, "attn_norm")
    attended = active + layer.norm(attention(layer, normed), "attn_post_norm")
    mixed = (attended + per_layer.laurel(layer, normed)) / math.sqrt(2)
    y = mixed + layer.norm(mlp(layer, layer.norm(mixed, "ffn_norm"), mixed), "ffn_post_norm")
    out = per_layer.corrected(layer, predicted, y)
    if own is not None:
        first = out[config.altup_active_idx]
        first = first * layer.tensor("altup_scale") if config.altup_correct_scale else first
        out[1:] += per_layer.add_layer_input(layer, first, own)
    return out
