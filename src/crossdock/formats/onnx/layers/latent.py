"""Multi-head latent attention with keys and values unfolded, as `model.layers.latent` without an indexer."""

from __future__ import annotations

from crossdock.formats.onnx.graph import Value
from crossdock.formats.onnx.layers.layer import Layer
from crossdock.formats.onnx.layers.positions import rotate
from crossdock.formats.onnx.layers.scores import Heads, attend
from crossdock.model.layers.rope import magnitude_of


def latent_attention(layer: Layer, x: Value) -> Value:
    """[tokens, heads * v_head_dim]: what the heads see, before the output matrix, for x [tokens, hidden_size]."""
    config, graph = layer.config, layer.graph
    heads, nope, turned = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    low = x
    if config.q_lora_rank:
        low = layer.rms_norm(layer.linear(x, "attn_q_a", bias=config.qkv_bias), "attn_q_a_norm")
    q = layer.linear(low, "attn_q_b" if config.q_lora_rank else "attn_q_full")
    kv = layer.linear(x, "attn_kv_a", bias=config.qkv_bias)
    latent = layer.rms_norm(graph.slice(kv, -1, 0, config.kv_lora_rank), "attn_kv_a_norm")
    shared = graph.slice(kv, -1, config.kv_lora_rank, kv.width)
    k, v = layer.linear(latent, "attn_k_b"), layer.linear(latent, "attn_v_b")
    q = graph.reshape(q, -1, heads, nope + turned)
    second = graph.reshape(graph.slice(q, -1, nope, nope + turned), -1, heads * turned)
    second = graph.reshape(rotate(layer, second, turned), -1, heads, turned)
    q = graph.reshape(graph.concat(-1, graph.slice(q, -1, 0, nope), second), -1, heads * (nope + turned))
    shared = graph.reshape(rotate(layer, shared, turned), -1, 1, turned)
    shared = graph.op("Tile", shared, graph.ints(1, heads, 1))
    k = graph.concat(-1, graph.reshape(k, -1, heads, nope), shared)
    k = graph.reshape(k, -1, heads * (nope + turned))
    scale = (nope + turned) ** -0.5
    if config.rope_type == "yarn" and config.rope_scaling.get("mscale_all_dim"):
        scale *= magnitude_of(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"]) ** 2
    return attend(layer, q, k, v, Heads(heads, heads), scale)
