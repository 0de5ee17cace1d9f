"""Multi-head latent attention, with keys and values unfolded, and the indexer that chooses which keys a query sees.

Formulas: arXiv 2405.04434 (MLA), DeepSeek-V3.2 (indexer); transformers 5.24 (deepseek_v32). Knows no files.
"""

from __future__ import annotations

import numpy as np

from crossdock.model.layers.layer import Array, Layer, unit_variance
from crossdock.model.layers.rope import Rotation, magnitude_of, rotate, rotation
from crossdock.model.layers.scores import Mask, attend, visible


def latent_attention(layer: Layer, x: Array) -> Array:
    """[n, heads, v_head_dim]: what the heads see, before the output matrix, for x [n, hidden_size]."""
    config = layer.config
    n, (heads, nope, rope, rank) = len(x), _sizes(layer)
    by = rotation(config, layer.index, n)
    low = x
    if config.q_lora_rank:
        low = layer.rms_norm(layer.linear(x, "attn_q_a", bias=config.qkv_bias), "attn_q_a_norm")
    kv = layer.linear(x, "attn_kv_a", bias=config.qkv_bias)
    latent, shared = kv[:, :rank], kv[:, None, rank:]
    latent = layer.rms_norm(latent, "attn_kv_a_norm")
    if config.k_rope_norm:
        shared = layer.rms_norm(shared, "attn_k_rope_norm")
    if config.latent_rescale:
        low, latent = (part * (config.hidden_size / part.shape[1]) ** 0.5 for part in (low, latent))
    q = layer.linear(low, "attn_q_b" if config.q_lora_rank else "attn_q_full").reshape(n, heads, -1)
    k = layer.linear(latent, "attn_k_b").reshape(n, heads, nope)
    v = layer.linear(latent, "attn_v_b").reshape(n, heads, -1)
    q = np.concatenate([q[..., :nope], rotate(q[..., nope:], by)], axis=-1)
    turned = np.broadcast_to(rotate(shared, by), (n, heads, rope))
    k = np.concatenate([k, turned], axis=-1)
    scale = q.shape[-1] ** -0.5
    if config.rope_type == "yarn" and config.rope_scaling.get("mscale_all_dim"):
        scale *= magnitude_of(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"]) ** 2
    seen = visible(config, layer.index, n)
    if config.index_topk and config.layer_type(layer.index) != "sliding_attention":
        seen &= _chosen(layer, x, low, by, seen)
    sinks = layer.tensor("attn_sinks").reshape(-1) if layer.index in config.attn_sink_layers else None
    return attend(q, k, v, seen, scale, sinks=sinks)


def _sizes(layer: Layer) -> tuple[int, int, int, int]:
    """Heads, their values without and with rope, and the rank of keys and values, in this layer."""
    config, index = layer.config, layer.index
    heads = config.num_attention_heads_per_layer
    count = heads[index] if heads else config.num_attention_heads
    if config.sliding_kv_lora_rank and config.layer_type(index) == "sliding_attention":
        nope, rope = config.sliding_qk_nope_head_dim, config.sliding_qk_rope_head_dim
        return count, nope, rope, config.sliding_kv_lora_rank
    return count, config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank


def _chosen(layer: Layer, x: Array, low: Array, by: Rotation | None, seen: Mask) -> Mask:
    """[query, key]: the keys that the indexer finds best for each query; of fewer than `index_topk`, all."""
    config = layer.config
    if layer.index in config.index_shared_layers:
        kept: Mask = layer.shared["chosen keys"]
        return kept
    turned = None if by is None else by._replace(interleaved=config.index_rope_interleaved)
    q = layer.linear(low, "index_q").reshape(len(x), config.index_n_heads, -1)
    k: Array = unit_variance(layer.linear(x, "index_k"), config.index_norm_eps) * layer.tensor("index_k_norm")
    k = k + layer.tensor("index_k_norm_bias")
    if config.index_rope_last:
        kept = k.shape[-1] - config.qk_rope_head_dim
        q, k = (np.concatenate([x[..., :kept], rotate(x[..., kept:], turned)], axis=-1) for x in (q, k))
    else:
        q, k = rotate(q, turned), rotate(k, turned)
    weights = layer.linear(x, "index_weight") * config.index_n_heads**-0.5
    scores: Array = np.zeros(seen.shape, x.dtype)
    for head in range(config.index_n_heads):
        scores += weights[:, head, None] * np.maximum(q[:, head] @ k.T * q.shape[-1] ** -0.5, 0)
    best = np.argsort(-np.where(seen, scores, -np.inf), axis=-1, kind="stable")[:, : config.index_topk]
    chosen = np.zeros_like(seen)
    np.put_along_axis(chosen, best, True, axis=-1)
    layer.shared["chosen keys"] = chosen
    return chosen
