"""Inputs that every layer has of its own (Gemma 3n, Gemma 4), and Gemma 3n's copies of the residual stream (AltUp) with
a low-rank shortcut beside attention (Laurel).

Formulas: AltUp (arXiv 2301.13310), Laurel (2411.07501); transformers 5.24 (gemma3n, gemma4). Knows no files.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossdock.model.layers.layer import Array, Layer, activation

SMALLEST = 1e-5  # mean square of a copy


def inputs_of_layers(model: Layer, ids: NDArray[np.int64], x: Array) -> Array | None:
    """[n, layers, hidden_size_per_layer_input], of the ids and their embeddings x [n, hidden_size]; None without."""
    config = model.config
    width = config.hidden_size_per_layer_input
    if not width:
        return None
    known = np.where(ids < config.vocab_size_per_layer_input, ids, 0)
    own = model.weights.rows("ple_embed", known).reshape(len(ids), -1, width) * math.sqrt(width)
    projected = (model.linear(x, "ple_proj") * config.hidden_size**-0.5).reshape(own.shape)
    return (model.norm(projected, "ple_proj_norm") + own) * 2**-0.5


def add_layer_input(layer: Layer, x: Array, own: Array) -> Array:
    """What the layer's own input adds to the stream x [n, hidden_size]."""
    gate = activation(layer.config.hidden_act, layer.linear(x, "ple_gate"))
    return layer.norm(layer.linear(gate * own, "ple_out"), "ple_post_norm")


def copies(model: Layer, x: Array) -> Array:
    """The stream x [n, hidden_size] and its copies, each by its own matrix and as large: [copies, n, hidden_size]."""
    parts = [x]
    for number in range(model.config.altup_num_inputs - 1):
        parts.append(_as_large(model.linear(x, "altup_in", expert=number), x))
    return np.stack(parts)


def merged(model: Layer, x: Array) -> Array:
    """The mean of the copies [copies, n, hidden_size], each by a matrix of its own and as large as the first."""
    parts = [x[0]]
    for number in range(model.config.altup_num_inputs - 1):
        parts.append(_as_large(model.linear(x[number + 1], "altup_out", expert=number), x[0]))
    return np.asarray(np.mean(parts, axis=0))


def predicted(layer: Layer, x: Array) -> Array:
    """The copies [copies, n, hidden_size] as mixtures of each other, before the layer."""
    count = layer.config.altup_num_inputs
    mixed = layer.linear(_modalities(layer, x[layer.config.altup_active_idx]), "altup_predict")
    shares = mixed.reshape(-1, count, count)  # [n, to, from]
    return np.asarray(np.einsum("ntf,fnh->tnh", shares, x) + x)


def corrected(layer: Layer, x: Array, y: Array) -> Array:
    """The predicted copies x, moved by how far the layer's y [n, hidden_size] is from the active one."""
    shares = layer.linear(_modalities(layer, y), "altup_correct") + 1  # [n, copies]
    return np.asarray(x + (y - x[layer.config.altup_active_idx]) * shares.T[..., None])


def laurel(layer: Layer, x: Array) -> Array:
    """Normed x [n, hidden_size] plus its low-rank map."""
    return x + layer.norm(layer.linear(layer.linear(x, "laurel_in"), "laurel_out"), "laurel_norm")


def _modalities(layer: Layer, x: Array) -> Array:
    routed = layer.norm(x, "altup_router_norm") / layer.config.hidden_size
    return np.asarray(np.tanh(layer.linear(routed, "altup_router")))


def _as_large(x: Array, like: Array) -> Array:
    size = np.sqrt(np.mean(like * like, axis=-1, keepdims=True))
    return np.asarray(x * size / np.sqrt(np.maximum(np.mean(x * x, axis=-1, keepdims=True), SMALLEST)))
