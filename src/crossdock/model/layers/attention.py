"""Causal attention over grouped heads (MHA, GQA, MQA), and what its variants add: norms of queries and keys, gates,
sinks, windows, chunks, ALiBi, temperature, keys and values of an earlier layer.

Formulas: arXiv 1706.03762, 2305.13245 (GQA), 2108.12409 (ALiBi), 2309.17453 (sinks); transformers 5.24. Knows no files.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.latent import latent_attention
from crossdock.model.layers.layer import Array, Layer, sigmoid, softplus, unit_rms
from crossdock.model.layers.rope import rotate, rotation
from crossdock.model.layers.scores import attend, visible


def attention(layer: Layer, x: Array) -> Array:
    """What attention adds to the residual stream, for normed x [n, hidden_size]."""
    config = layer.config
    if layer.index in config.linear_attention_layers:
        return layer.linear(x, "attn_linear")
    x = x * config.attention_in_multiplier
    y = latent_attention(layer, x) if config.kv_lora_rank else _grouped_attention(layer, x)
    if config.attn_gate:
        opened = sigmoid if config.attn_gate_act == "sigmoid" else softplus
        gate = opened(layer.linear(x, "attn_gate"))
        y = y * gate.reshape(*y.shape[:2], -1)
    y = y.reshape(len(x), -1)
    if config.sub_norms:
        y = layer.norm(y, "attn_sub_norm")
    return layer.linear(y, "attn_o", bias=config.attn_out_bias) * config.attention_out_multiplier


def _grouped_attention(layer: Layer, x: Array) -> Array:
    """[n, heads, v_head_dim]: what the heads see, before the output matrix."""
    config, index = layer.config, layer.index
    dim = config.head_dim_per_layer[index] if config.head_dim_per_layer else config.head_dim
    by = rotation(config, index, len(x))
    q = _heads(layer, x, "attn_q", dim)
    q = rotate(q, by) if config.qk_norm_after_rope else rotate(_qk_norm(layer, q, "attn_q_norm"), by)
    if config.qk_norm_after_rope:
        q = _qk_norm(layer, q, "attn_q_norm")
    k, v = _keys_and_values(layer, x, dim)
    if config.attn_temperature:
        q = q * _temperature(config, index, len(x))[:, None, None].astype(q.dtype)
    scale = (config.query_pre_attn_scalar or dim) ** -0.5
    if config.attention_multiplier is not None:
        scale = config.attention_multiplier
    bias = _alibi(q.shape[1], len(x)) if config.position_embedding == "alibi" else None
    sinks = layer.tensor("attn_sinks").reshape(-1) if index in config.attn_sink_layers else None
    cap = config.attn_logit_softcapping
    return attend(q, k, v, visible(config, index, len(x)), scale, cap=cap, bias=bias, sinks=sinks)


def _keys_and_values(layer: Layer, x: Array, dim: int) -> tuple[Array, Array]:
    """k [n, groups, dim] and v [n, groups, v_head_dim], of this layer or of the last one of its type that has them."""
    config, kind = layer.config, f"keys and values of {layer.config.layer_type(layer.index)}"
    if config.num_kv_shared_layers and layer.index >= config.num_hidden_layers - config.num_kv_shared_layers:
        shared: tuple[Array, Array] = layer.shared[kind]
        return shared
    k = _heads(layer, x, "attn_k", dim)
    if layer.index in config.k_eq_v_layers:
        v = k
    else:
        v = _clipped(config, layer.linear(x, "attn_v", bias=config.qkv_bias)).reshape(*k.shape[:2], -1)
    by = rotation(config, layer.index, len(x))
    if config.qk_norm_after_rope:
        k = _qk_norm(layer, rotate(k, by), "attn_k_norm")
    else:
        k = rotate(_qk_norm(layer, k, "attn_k_norm"), by)
    if config.v_norm:
        v = unit_rms(v, config.norm_eps)
    k, v = k * config.key_multiplier, v * config.attention_value_scale
    if config.num_kv_shared_layers:
        layer.shared[kind] = k, v
    return k, v


def _heads(layer: Layer, x: Array, name: str, dim: int) -> Array:
    y = layer.linear(x, name, bias=layer.config.qkv_bias)
    return _clipped(layer.config, y).reshape(len(x), -1, dim)


def _clipped(config: ModelConfig, x: Array) -> Array:
    return x if config.clip_qkv is None else np.clip(x, -config.clip_qkv, config.clip_qkv)


def _qk_norm(layer: Layer, x: Array, name: str) -> Array:
    """The norm of queries or keys x [n, heads, dim]: of each head, or of all heads together."""
    config = layer.config
    if not config.qk_norm or (config.qk_norm_type == "unit" and layer.index in config.nope_layers):
        return x
    if config.qk_norm_type == "unit":
        return unit_rms(x, config.norm_eps)
    flat = x.reshape(len(x), -1) if config.qk_norm_type == "whole" else x
    return layer.norm(flat, name, bias=config.qk_norm_bias).reshape(x.shape)


def _temperature(config: ModelConfig, index: int, n: int) -> Array:
    """What queries are multiplied by at each position, [n]: more where the context is long."""
    positions = np.arange(n, dtype=np.float32)
    scale, length = config.attn_temperature_scale, config.attn_temperature_length
    if config.attn_temperature == "llama4":
        if index not in config.nope_layers:
            return np.ones(n, np.float32)
        return np.asarray(1 + scale * np.log1p(np.floor((positions + 1) / length)))
    return np.asarray(1 + scale * np.log1p(np.floor(positions / length)))


def _alibi(heads: int, n: int) -> NDArray[np.float32]:
    """What is added to scores, [heads, 1, n]: a slope of each head times the key's position."""
    return np.outer(alibi_slopes(heads), np.arange(n))[:, None].astype(np.float32)


def alibi_slopes(heads: int) -> NDArray[np.float64]:
    """The slope of each head, [heads]."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return np.array(slopes)
