"""Causal attention: grouped heads (MHA, GQA, MQA) and DeepSeek's multi-head latent attention.

Formulas: arXiv 1706.03762, 2305.13245 and 2405.04434 (MLA, keys and values unfolded). Knows no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.layer import Array, Layer, capped, rms_norm, softmax
from crossdock.model.layers.rope import Rotation, magnitude_of, rotate


def attention(layer: Layer, index: int, x: Array, by: Rotation | None) -> Array:
    """What attention adds to the residual stream, for normed x [n, hidden_size]."""
    config = layer.config
    if index in config.linear_attention_layers:
        return layer.linear(x, "attn_linear")
    y = _latent(layer, index, x, by) if config.kv_lora_rank else _grouped(layer, index, x, by)
    return layer.linear(y.reshape(len(x), -1), "attn_o", bias=config.attn_out_bias)


def _grouped(layer: Layer, index: int, x: Array, by: Rotation | None) -> Array:
    config = layer.config
    n, dim, groups = len(x), config.head_dim, config.kv_heads(index)
    q = layer.linear(x, "attn_q", bias=config.qkv_bias, outputs=4).reshape(n, -1, dim)
    k = layer.linear(x, "attn_k", bias=config.qkv_bias, outputs=3).reshape(n, groups, dim)
    v = layer.linear(x, "attn_v", bias=config.qkv_bias, outputs=3).reshape(n, groups, dim)
    if config.qk_norm:
        q = rms_norm(q, layer.tensor("attn_q_norm").reshape(-1), config.norm_eps)
        k = rms_norm(k, layer.tensor("attn_k_norm").reshape(-1), config.norm_eps)
    if by is not None:
        q, k = rotate(q, by), rotate(k, by)
    scale = (config.query_pre_attn_scalar or dim) ** -0.5
    return _attend(q, k, v, _visible(config, index, n), scale, config.attn_logit_softcapping)


def _latent(layer: Layer, index: int, x: Array, by: Rotation | None) -> Array:
    assert by is not None
    config = layer.config
    n, heads, nope = len(x), config.num_attention_heads, config.qk_nope_head_dim
    if config.q_lora_rank:
        low = rms_norm(layer.linear(x, "attn_q_a"), layer.tensor("attn_q_a_norm"), config.norm_eps)
        q = layer.linear(low, "attn_q_b", outputs=2)
    else:
        q = layer.linear(x, "attn_q_full", outputs=2)
    q = q.reshape(n, heads, -1)
    kv = layer.linear(x, "attn_kv_a")
    latent, shared = kv[:, : config.kv_lora_rank], kv[:, None, config.kv_lora_rank :]
    latent = rms_norm(latent, layer.tensor("attn_kv_a_norm"), config.norm_eps)
    k = layer.linear(latent, "attn_k_b", outputs=2).reshape(n, heads, nope)
    v = layer.linear(latent, "attn_v_b", outputs=2).reshape(n, heads, -1)
    q = np.concatenate([q[..., :nope], rotate(q[..., nope:], by)], axis=-1)
    turned = np.broadcast_to(rotate(shared, by), (n, heads, config.qk_rope_head_dim))
    k = np.concatenate([k, turned], axis=-1)
    scale = q.shape[-1] ** -0.5
    if config.rope_type == "yarn" and config.rope_scaling.get("mscale_all_dim"):
        scale *= magnitude_of(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"]) ** 2
    return _attend(q, k, v, _visible(config, index, n), scale)


def _visible(config: ModelConfig, index: int, n: int) -> NDArray[np.bool_]:
    """[query, key]: the keys that a query sees."""
    back = np.arange(n)[:, None] - np.arange(n)
    sliding = not config.layer_types or config.layer_types[index] == "sliding_attention"
    if config.sliding_window is not None and sliding:
        return (back >= 0) & (back < config.sliding_window)
    return back >= 0


def _attend(q: Array, k: Array, v: Array, visible: NDArray[np.bool_], scale: float, cap: float | None = None) -> Array:
    """q [n, heads, d], k [n, groups, d], v [n, groups, e] -> [n, heads, e], one head's scores at a time."""
    per_group = q.shape[1] // k.shape[1]
    out = np.empty((*q.shape[:2], v.shape[2]), q.dtype)
    for head in range(q.shape[1]):
        group = head // per_group
        scores = capped(q[:, head] @ k[:, group].T * scale, cap)
        out[:, head] = softmax(np.where(visible, scores, -np.inf)) @ v[:, group]
    return out
