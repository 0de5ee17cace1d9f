"""Causal attention over grouped heads with a cache of keys and values, and what its variants add.

As `model.layers.attention`. What is before and behind the scores is ONNX's own operators; the scores are
GroupQueryAttention ("gqa") or Attention ("standard"), see `scores`.
"""

from __future__ import annotations

from crossdock.formats.onnx.graph import Value
from crossdock.formats.onnx.layers.latent import latent_attention
from crossdock.formats.onnx.layers.layer import Layer, sigmoid, softplus
from crossdock.formats.onnx.layers.positions import positions, rotate
from crossdock.formats.onnx.layers.scores import Heads, attend, attend_kept


def attention(layer: Layer, x: Value) -> Value:
    """What attention adds to the residual stream, for normed x [tokens, hidden_size]."""
    config, graph = layer.config, layer.graph
    if layer.index in config.linear_attention_layers:
        return layer.linear(x, "attn_linear")
    x = graph.mul(x, config.attention_in_multiplier)
    y = latent_attention(layer, x) if config.kv_lora_rank else _grouped_attention(layer, x)
    if config.attn_gate:
        opened = sigmoid if config.attn_gate_act == "sigmoid" else softplus
        gate = opened(graph, layer.linear(x, "attn_gate"))
        if gate.width != y.width:  # one for each head
            width, heads = y.width, gate.width
            y = graph.mul(graph.reshape(y, -1, heads, width // heads), graph.reshape(gate, -1, heads, 1))
            y = graph.reshape(y, -1, width)
        else:
            y = graph.mul(y, gate)
    if config.sub_norms:
        y = layer.norm(y, "attn_sub_norm")
    return graph.mul(layer.linear(y, "attn_o", bias=config.attn_out_bias), config.attention_out_multiplier)


def _grouped_attention(layer: Layer, x: Value) -> Value:
    """[tokens, heads * v_head_dim]: what the heads see, before the output matrix."""
    config, graph, index = layer.config, layer.graph, layer.index
    dim = config.head_dim_per_layer[index] if config.head_dim_per_layer else config.head_dim
    q = _turned(layer, _projected(layer, x, "attn_q"), "attn_q_norm", dim)
    if config.attn_temperature:
        q = _warmed(layer, q)
    scale = (config.query_pre_attn_scalar or dim) ** -0.5
    if config.attention_multiplier is not None:
        scale = config.attention_multiplier
    q = graph.cast(q, graph.dtype)
    if config.num_kv_shared_layers and index >= config.num_hidden_layers - config.num_kv_shared_layers:
        return attend_kept(layer, q, dim, scale)
    k, v = (graph.cast(one, graph.dtype) for one in _keys_and_values(layer, x, dim))
    return attend(layer, q, k, v, Heads(q.width // dim, k.width // dim), scale)


def _keys_and_values(layer: Layer, x: Value, dim: int) -> tuple[Value, Value]:
    """k [tokens, groups * dim] and v [tokens, groups * v_head_dim] of these tokens."""
    config, graph = layer.config, layer.graph
    k = _projected(layer, x, "attn_k")
    v = k if layer.index in config.k_eq_v_layers else _projected(layer, x, "attn_v")
    groups = k.width // dim
    k = _turned(layer, k, "attn_k_norm", dim)
    if config.v_norm:
        width = v.width
        v = graph.reshape(layer.unit_rms(graph.reshape(v, -1, groups, width // groups), config.norm_eps), -1, width)
    return graph.mul(k, config.key_multiplier), graph.mul(v, config.attention_value_scale)


def _projected(layer: Layer, x: Value, name: str) -> Value:
    y, limit = layer.linear(x, name, bias=layer.config.qkv_bias), layer.config.clip_qkv
    return y if limit is None else layer.graph.clip(y, -limit, limit)


def _turned(layer: Layer, x: Value, norm: str, dim: int) -> Value:
    """Queries or keys x [tokens, heads * dim], normed and rotated, in the order that the model has."""
    if layer.config.qk_norm_after_rope:
        return _qk_norm(layer, rotate(layer, x, dim), norm, dim)
    return rotate(layer, _qk_norm(layer, x, norm, dim), dim)


def _qk_norm(layer: Layer, x: Value, name: str, dim: int) -> Value:
    """The norm of queries or keys: of each head, or of all heads together."""
    config, graph, width = layer.config, layer.graph, x.width
    if not config.qk_norm or (config.qk_norm_type == "unit" and layer.index in config.nope_layers):
        return x
    if config.qk_norm_type == "whole":
        return layer.norm(x, name, bias=config.qk_norm_bias)
    heads = graph.reshape(x, -1, width // dim, dim)
    if config.qk_norm_type == "unit":
        return graph.reshape(layer.unit_rms(heads, config.norm_eps), -1, width)
    return graph.reshape(layer.norm(heads, name, bias=config.qk_norm_bias), -1, width)


def _warmed(layer: Layer, q: Value) -> Value:
    """Queries times what they grow by with the position."""
    config, graph = layer.config, layer.graph
    if config.attn_temperature == "llama4" and layer.index not in config.nope_layers:
        return q
    counted = graph.reshape(positions(layer), -1, 1)
    if config.attn_temperature == "llama4":
        counted = graph.add(counted, 1.0)
    steps = graph.op("Floor", graph.div(counted, float(config.attn_temperature_length)))
    grown = graph.mul(graph.op("Log", graph.add(steps, 1.0)), config.attn_temperature_scale)
    return graph.mul(q, graph.add(grown, 1.0))._replace(width=q.width)
