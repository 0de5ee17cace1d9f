"""How much a forward computes: the multiply-adds of its matrix products, from the configuration alone.

Knows no weights. tests/forward/test_rounding.py counts those of the forward itself.
"""

from __future__ import annotations

from crossdock.model.config import ModelConfig


def multiply_adds(config: ModelConfig, n: int) -> int:
    """Of all matrix products of `forward` for n tokens."""
    layers = sum(_attention(config, layer, n) + _mlp(config, layer) for layer in range(config.num_hidden_layers))
    return n * (layers + config.hidden_size * config.vocab_size)


def _attention(config: ModelConfig, layer: int, n: int) -> int:
    """A token's."""
    hidden, heads, dim = config.hidden_size, config.num_attention_heads, config.head_dim
    if layer in config.linear_attention_layers:
        return hidden * hidden
    if not config.has_attention(layer):
        return 0
    if not config.kv_lora_rank:
        return hidden * dim * 2 * (heads + config.kv_heads(layer)) + heads * 2 * dim * n
    key, value = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    low, rank = config.q_lora_rank, config.kv_lora_rank
    queries = (hidden + heads * key) * low if low else hidden * heads * key
    keys = hidden * (rank + config.qk_rope_head_dim) + rank * heads * (config.qk_nope_head_dim + value)
    return queries + keys + heads * (key + value) * n + heads * value * hidden


def _mlp(config: ModelConfig, layer: int) -> int:
    """A token's."""
    hidden, widths = config.hidden_size, config.intermediate_size_per_layer
    if layer in config.linear_mlp_layers:
        return hidden * hidden
    width, routed = widths[layer] if widths else config.intermediate_size, 0
    if layer in config.moe_layers:
        width = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
        routed = hidden * config.num_experts
    return (3 if config.mlp_gated else 2) * hidden * width + routed
