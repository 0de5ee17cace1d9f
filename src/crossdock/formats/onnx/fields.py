"""Which models a graph can express. Closed by default: a field of the configuration that is not named here must have
its default, or the model is refused with what ONNX lacks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.model.config import ATTENTION, ModelConfig

# fields that the layers read, whatever their value
OBEYED = frozenset((
    "family", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "norm_eps",
    "mlp_gated", "norm_bias", "norm_weight", "pre_norms", "post_norms", "sub_norms", "embed_norm",
    "tie_word_embeddings", "head_bias", "mlp_bias", "parallel_attn", "num_ln_in_parallel_attn", "layer_scale",
    "scale_embedding", "embedding_multiplier", "residual_multiplier", "logit_scale", "logits_scaling",
    "final_logit_softcapping", "mlp_multipliers", "swiglu_limit", "swiglu_alpha", "swiglu_offset",
    "activation_sparsity_pattern", "high_cycles", "low_cycles",
    "qkv_bias", "attn_out_bias", "qk_norm", "qk_norm_bias", "qk_norm_after_rope", "v_norm", "attn_sink_layers",
    "query_pre_attn_scalar", "attention_multiplier", "attn_logit_softcapping", "clip_qkv", "attn_temperature_scale",
    "attn_temperature_length", "attention_in_multiplier", "attention_out_multiplier", "key_multiplier",
    "attention_value_scale", "sliding_window", "attention_chunk_size", "k_eq_v_layers",
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rope_interleaved", "nope_layers", "rope_theta_per_layer",
    "sliding_rope_theta", "sliding_rope_scaling", "sliding_partial_rotary_factor",
    "num_attention_heads_per_layer", "num_key_value_heads_per_layer", "head_dim_per_layer",
    "intermediate_size_per_layer", "linear_attention_layers", "linear_mlp_layers",
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_latent_size", "moe_layers", "expert_bias",
    "shared_expert_intermediate_size", "shared_expert_gate", "shared_expert_average", "moe_beside_mlp", "router_bias",
    "router_logit_bias", "router_logit_softcapping", "router_scales_input", "norm_topk_prob", "norm_topk_eps",
    "routed_scaling_factor", "n_group", "topk_group",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "inner_norm_eps",
))  # fmt: skip
# fields that are obeyed for these values; "layer_types" for the types of its layers
VALUES = {
    "hidden_act": ("silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"),
    "norm": ("rms", "layer"),
    "qk_norm_type": ("head", "heads", "whole", "unit"),
    "attn_gate": ("", "value", "head"),
    "attn_gate_act": ("sigmoid", "softplus"),
    "attn_temperature": ("", "llama4", "ministral3"),
    "layer_types": (*ATTENTION, "none"),
    "position_embedding": ("rope", "learned", "alibi", "none"),
    "rope_type": ("default", "linear", "llama3", "yarn", "longrope", "proportional"),
    "sliding_rope_type": ("default", "linear", "llama3", "yarn", "longrope", "proportional"),
    "router_scoring": ("softmax", "sigmoid", "sqrtsoftplus"),
    "group_score": ("top2", "max"),
}
# fields that change no logits of a text, or size what other fields name
WITHOUT_EFFECT = {
    "mrope_section": "text has the same position in every section",
    "mrope_interleaved": "text has the same position in every section",
    "num_nextn_predict_layers": "layers for multi-token prediction change no logits",
    "nextn_embed": "layers for multi-token prediction change no logits",
    "nextn_head": "layers for multi-token prediction change no logits",
    "lora_ranks": "an adapter is merged before it is written",
    "dtype": "how the source stores values",
    "bos_token_id": "the tokenizer's",
    "eos_token_id": "the tokenizer's",
    "pad_token_id": "the tokenizer's",
} | dict.fromkeys(
    ("index_n_heads", "index_head_dim", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
     "linear_value_head_dim", "linear_conv_kernel_dim", "mamba_d_inner", "mamba_d_state", "mamba_d_conv",
     "mamba_dt_rank", "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "short_conv_kernel"),
    "a size of layers that layer_types names",
)  # fmt: skip
# what is missing for a field or the value of one
LACKING = {
    "index_topk": "no operator chooses the keys that a query sees by an indexer with a cache of its own",
    "num_kv_shared_layers": "GroupQueryAttention and Attention take keys and values of their own layer",
    "dynamic": "frequencies follow the length of the text, and the cache has keys of other frequencies",
    "gated_delta_net": "ONNX has no operator for the delta rule; LinearAttention (com.microsoft) is not written",
    "kimi_delta_attention": "ONNX has no operator for the delta rule; LinearAttention (com.microsoft) is not written",
    "mamba": "ONNX has no operator for a selective scan",
    "mamba2": "ONNX has no operator for a selective scan",
    "mamba2_and_attention": "ONNX has no operator for a selective scan",
    "short_convolution": "Conv has no state; CausalConvWithState (com.microsoft) is not written",
    "hidden_size_per_layer_input": "inputs of each layer are not written as nodes",
    "altup_num_inputs": "copies of the residual stream are not written as nodes",
}


def demand_expressible(config: ModelConfig) -> None:
    """Raises PlanError with every field that the graph does not obey."""
    problems = list(_problems(config))
    if problems:
        raise PlanError(problems)


def _problems(config: ModelConfig) -> Iterator[Problem]:
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        rest = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if name in OBEYED or name in WITHOUT_EFFECT:
            continue
        if name in VALUES:
            strange = [one for one in _each(value) if one not in VALUES[name]]
            for one in dict.fromkeys(strange):
                yield _lacking(name, one, " or ".join(map(repr, VALUES[name])), LACKING.get(str(one), ""))
        elif value != rest:
            yield _lacking(name, value, repr(rest), LACKING.get(name, ""))
    if config.qk_norm_after_rope and config.rope_interleaved and config.qk_norm_type != "unit":
        cause = "RotaryEmbedding leaves neighbours where they are, and the norm behind it counts in halves"
        yield _lacking("qk_norm_after_rope", True, "False", cause)
    if config.attn_sink_layers and config.position_embedding == "alibi":
        yield _lacking("attn_sink_layers", config.attn_sink_layers, "()", "no operator has sinks and ALiBi")
    if config.kv_lora_rank and config.attn_sink_layers:
        yield _lacking("attn_sink_layers", config.attn_sink_layers, "()", "latent attention is written without sinks")


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _lacking(name: str, value: Any, expected: str, cause: str) -> Problem:
    return Problem(
        "the ONNX graph cannot express this model", where=name, expected=expected, got=repr(value)[:120],
        cause=cause or "the layers of the graph do not obey this field",
    )  # fmt: skip
