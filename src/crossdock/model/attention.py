"""Causal attention: grouped heads (MHA, GQA, MQA) and DeepSeek's multi-head latent attention.

Formulas: arXiv 1706.03762, 2305.13245 and 2405.04434 (MLA, keys and values unfolded). Knows no files.
"""

from __future__ import annotations

import numpy as np

from crossdock.model.config import ModelConfig
from crossdock.model.rope import Rotation, magnitude_of, rotate
from crossdock.model.rounding import Array
from crossdock.model.tensors import Model, capped, linear, rms_norm, softmax


def attention(model: Model, layer: int, x: Array, by: Rotation | None) -> Array:
    """What attention of `layer` adds to the residual stream, for normed x [n, hidden_size]."""
    config = model.config
    if layer in config.linear_attention_layers:
        return linear(model, x, "attn_linear", layer)
    inner = _latent if config.kv_lora_rank else _grouped
    y = inner(model, layer, x, by).reshape(len(x), -1)
    return linear(model, y, "attn_o", layer, bias=config.attn_out_bias)


def _grouped(model: Model, layer: int, x: Array, by: Rotation | None) -> Array:
    config, weights = model.config, model.weights
    n, dim, groups = len(x), config.head_dim, config.kv_heads(layer)
    bias = config.qkv_bias
    q = linear(model, x, "attn_q", layer, bias=bias, outputs=4).reshape(n, -1, dim)
    k = linear(model, x, "attn_k", layer, bias=bias, outputs=3).reshape(n, groups, dim)
    v = linear(model, x, "attn_v", layer, bias=bias, outputs=3).reshape(n, groups, dim)
    if config.qk_norm:
        q = rms_norm(q, weights.whole("attn_q_norm", layer).reshape(-1), config.norm_eps)
        k = rms_norm(k, weights.whole("attn_k_norm", layer).reshape(-1), config.norm_eps)
    if by is not None:
        q, k = rotate(q, by), rotate(k, by)
    scale = (config.query_pre_attn_scalar or dim) ** -0.5
    return _attend(model, q, k, v, _visible(config, layer, n), scale, config.attn_logit_softcapping)


def _latent(model: Model, layer: int, x: Array, by: Rotation | None) -> Array:
    assert by is not None
    config, weights = model.config, model.weights
    n, heads, nope = len(x), config.num_attention_heads, config.qk_nope_head_dim
    if config.q_lora_rank:
        low = linear(model, x, "attn_q_a", layer)
        low = rms_norm(low, weights.whole("attn_q_a_norm", layer), config.norm_eps)
        q = linear(model, low, "attn_q_b", layer, outputs=2)
    else:
        q = linear(model, x, "attn_q_full", layer, outputs=2)
    q = q.reshape(n, heads, -1)
    kv = linear(model, x, "attn_kv_a", layer)
    latent, shared = kv[:, : config.kv_lora_rank], kv[:, None, config.kv_lora_rank :]
    latent = rms_norm(latent, weights.whole("attn_kv_a_norm", layer), config.norm_eps)
    k = linear(model, latent, "attn_k_b", layer, outputs=2).reshape(n, heads, nope)
    v = linear(model, latent, "attn_v_b", layer, outputs=2).reshape(n, heads, -1)
    q = np.concatenate([q[..., :nope], rotate(q[..., nope:], by)], axis=-1)
    turned = np.broadcast_to(rotate(shared, by), (n, heads, config.qk_rope_head_dim))
    k = np.concatenate([k, turned], axis=-1)
    scale = q.shape[-1] ** -0.5
    if config.rope_type == "yarn" and config.rope_scaling.get("mscale_all_dim"):
        scale *= magnitude_of(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"]) ** 2
    return _attend(model, q, k, v, _visible(config, layer, n), scale)


def _visible(config: ModelConfig, layer: int, n: int) -> np.ndarray:
    """[query, key]: the keys that a query sees."""
    back = np.arange(n)[:, None] - np.arange(n)
    sliding = not config.layer_types or config.layer_types[layer] == "sliding_attention"
    if config.sliding_window is not None and sliding:
        return (back >= 0) & (back < config.sliding_window)
    return back >= 0


def _attend(
    model: Model, q: Array, k: Array, v: Array, visible: np.ndarray, scale: float, cap: float | None = None
) -> Array:
    """q [n, heads, d], k [n, groups, d], v [n, groups, e] -> [n, heads, e], one head's scores at a time."""
    per_group = q.shape[1] // k.shape[1]
    out = np.empty((*q.shape[:2], v.shape[2]), q.dtype)
    for head in range(q.shape[1]):
        group = head // per_group
        scores = capped(model.product(q[:, head], k[:, group].T) * scale, cap)
        out[:, head] = model.product(softmax(np.where(visible, scores, -np.inf)), v[:, group])
    return out
