"""Linear attention with a gated delta rule: Gated DeltaNet (Qwen3-Next, Qwen3.5) and Kimi Delta Attention.

A state of each head maps keys to values. A position lets it decay, corrects what it returns for the position's key,
and reads it with the query. Formulas: arXiv 2412.06464, 2510.26692; transformers 5.24. Knows no files.
"""

from __future__ import annotations

import numpy as np

from crossdock.model.layers.convolution import convolved
from crossdock.model.layers.layer import Array, Layer, activation, sigmoid, softplus, unit_rms

L2_EPS = 1e-6  # in the length of queries and keys, whatever the model's epsilon is


def gated_delta_net(layer: Layer, x: Array) -> Array:
    """What Gated DeltaNet adds to the residual stream, for normed x [n, hidden_size]: one decay a head."""
    q, k, v = _queries_keys_values(layer, x)
    decay = -np.exp(layer.tensor("delta_a_log").reshape(-1))
    decay = decay * softplus(layer.linear(x, "delta_a") + layer.tensor("delta_dt_bias").reshape(-1))
    beta = sigmoid(layer.linear(x, "delta_b"))
    y = _delta_rule(q, k, v, np.broadcast_to(decay[..., None], k.shape), beta)
    gate = activation("silu", layer.linear(x, "delta_z").reshape(y.shape))
    return _output(layer, y, gate)


def kimi_delta_attention(layer: Layer, x: Array) -> Array:
    """What Kimi Delta Attention adds to the stream, for normed x [n, hidden_size]: one decay a value of a key."""
    config = layer.config
    q, k, v = _queries_keys_values(layer, x)
    low = bool(config.linear_gate_rank)
    step = layer.linear(layer.linear(x, "delta_f_a"), "delta_f_b") if low else layer.linear(x, "delta_f")
    step = (step + layer.tensor("delta_dt_bias").reshape(-1)).reshape(k.shape)
    rate = np.exp(layer.tensor("delta_a_log").reshape(-1))[:, None]
    if config.linear_decay_bound is None:
        decay = -rate * softplus(step)
    else:
        decay = -config.linear_decay_bound * sigmoid(rate * step)
    y = _delta_rule(q, k, v, decay, sigmoid(layer.linear(x, "delta_b")))
    gate = layer.linear(layer.linear(x, "delta_g_a"), "delta_g_b") if low else layer.linear(x, "delta_z")
    return _output(layer, y, sigmoid(gate.reshape(y.shape)))


def _queries_keys_values(layer: Layer, x: Array) -> tuple[Array, Array, Array]:
    """q and k [n, value heads, key_dim] of length 1 (q over the root of key_dim), v [n, value heads, value_dim]."""
    config = layer.config
    q, k, v = (convolved(layer, layer.linear(x, f"delta_{part}"), f"delta_{part}_conv") for part in "qkv")
    q, k = (part.reshape(len(x), config.linear_num_key_heads, -1) for part in (q, k))
    q, k = (part / np.sqrt((part * part).sum(axis=-1, keepdims=True) + L2_EPS) for part in (q, k))
    q = q * q.shape[-1] ** -0.5
    heads = config.linear_num_value_heads // config.linear_num_key_heads  # value heads of one key head lie together
    return q.repeat(heads, axis=1), k.repeat(heads, axis=1), v.reshape(len(x), config.linear_num_value_heads, -1)


def _delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
    """[n, heads, value_dim]. decay: the logarithm, as k; beta [n, heads]: how much of the error is corrected."""
    state = np.zeros((*k.shape[1:], v.shape[2]), v.dtype)
    out = np.empty_like(v)
    kept = np.exp(decay)
    for i in range(len(v)):
        state = state * kept[i, :, :, None]
        error = v[i] - np.einsum("hkv,hk->hv", state, k[i])
        state = state + k[i, :, :, None] * (error * beta[i, :, None])[:, None]
        out[i] = np.einsum("hkv,hk->hv", state, q[i])
    return out


def _output(layer: Layer, y: Array, gate: Array) -> Array:
    """A norm of each head, which the gate multiplies, and the output matrix."""
    normed = unit_rms(y, layer.config.norm_eps) * layer.tensor("delta_norm")
    return layer.linear((normed * gate).reshape(len(y), -1), "delta_o")
