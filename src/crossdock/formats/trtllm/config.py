"""config.json of a TensorRT-LLM checkpoint: the keys that its loader reads, written and read.

The loader only warns about a key that it does not know, so a misspelt key is a silent fault: every key is held against
these tables. Facts: TensorRT-LLM 0.14.0.dev2024100800, `models/modeling_utils.py` (PretrainedConfig, QuantConfig),
`mapping.py`, `layers/moe.py` (MoeConfig) and each model's `config.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from crossdock.errors import PlanError, Problem

_PRETRAINED = (
    "architecture", "dtype", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_act",
    "logits_dtype", "norm_epsilon", "position_embedding_type", "max_position_embeddings", "num_key_value_heads",
    "intermediate_size", "head_size", "mapping", "quantization", "use_parallel_embedding", "embedding_sharding_dim",
    "share_embedding_table", "qk_layernorm", "rotary_embedding_dim",
)  # fmt: skip
_NESTED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "mapping": ("world_size", "tp_size", "pp_size", "gpus_per_node", "cp_size", "moe_tp_size", "moe_ep_size"),
    "quantization": (
        "quant_algo", "kv_cache_quant_algo", "group_size", "smoothquant_val", "has_zero_point", "pre_quant_scale",
        "exclude_modules", "clamp_val",
    ),
    "moe": (
        "num_experts", "moe_intermediate_size", "num_shared_experts", "top_k", "normalization_mode",
        "sparse_mixer_epsilon", "tp_mode",
    ),
})  # fmt: skip
_LLAMA = ("mlp_bias", "attn_bias", "rotary_base", "rotary_scaling", "residual_mlp", "disable_weight_only_quant_plugin",
          "moe", "remove_duplicated_kv_heads")  # fmt: skip
_QWEN = ("mlp_bias", "attn_bias", "rotary_base", "rotary_scaling", "disable_weight_only_quant_plugin", "moe",
         "qwen_type", "moe_intermediate_size", "moe_shared_expert_intermediate_size")  # fmt: skip
_GPT = ("gpt_variant", "bias", "q_scaling", "embedding_scale", "apply_query_key_layer_scaling", "rotary_pct",
        "rotary_base", "rotary_scaling", "inner_layernorm", "norm_before_bmm1", "moe")  # fmt: skip
_FALCON = ("bias", "parallel_attention", "new_decoder_architecture")
_GEMMA = ("rotary_base", "rotary_scaling", "attn_bias", "mlp_bias", "inter_layernorms", "query_pre_attn_scalar",
          "final_logit_softcapping", "attn_logit_softcapping")  # fmt: skip
_DECI = ("rotary_base", "rotary_scaling", "block_configs", "layer_configs")

ROUTER = ".mlp.router.weight"  # the end of its name; float32 whatever the model's dtype

# the names of a model in the loader's MODEL_MAP -> the keys of its own
MODELS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "LlamaForCausalLM": _LLAMA, "LLaMAForCausalLM": _LLAMA, "MistralForCausalLM": _LLAMA, "MixtralForCausalLM": _LLAMA,
    "QWenForCausalLM": _QWEN, "Qwen2ForCausalLM": _QWEN, "Qwen3ForCausalLM": _QWEN, "Qwen3MoeForCausalLM": _QWEN,
    "GPTForCausalLM": _GPT, "GPT2LMHeadModel": _GPT, "GPTBigCodeForCausalLM": _GPT,
    "FalconForCausalLM": _FALCON, "GemmaForCausalLM": _GEMMA, "Gemma2ForCausalLM": _GEMMA, "DeciLMForCausalLM": _DECI,
})  # fmt: skip


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """config.json from keys with dots ("mapping.tp_size"). Raises PlanError for every key that no loader reads."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        table, dot, inner = key.partition(".")
        if dot:
            out.setdefault(table, {})[inner] = value
        else:
            out[key] = list(value) if isinstance(value, tuple) else value
    architecture = str(out.get("architecture"))
    if architecture not in MODELS:
        raise PlanError("TensorRT-LLM has no such model", where="architecture", got=architecture)
    known = {*_PRETRAINED, *MODELS[architecture]}
    unknown = [key for key in out if key not in known]
    unknown += [f"{table}.{key}" for table in out.keys() & _NESTED for key in out[table] if key not in _NESTED[table]]
    if unknown:
        what = f"the loader of {architecture} reads no such key, and would only warn"
        raise PlanError([Problem(what, where=key) for key in unknown])
    return out


def config_json(config: Mapping[str, Any]) -> bytes:
    """The file's bytes; keys as they come."""
    return json.dumps(config, indent=4).encode() + b"\n"


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of ranks and quantisation, under a layout's names. The numbers are not checked."""
    mapping, quantization = config.get("mapping") or {}, config.get("quantization") or {}
    tp = mapping.get("tp_size", config.get("tp_size", 1))
    ep = mapping.get("moe_ep_size", 1)
    return {
        "tensor_parallel": tp,
        "pipeline_parallel": mapping.get("pp_size", config.get("pp_size", 1)),
        "moe_expert_parallel": ep,
        "moe_tensor_parallel": mapping.get("moe_tp_size", tp),
        "use_parallel_embedding": config.get("use_parallel_embedding", False),
        "embedding_sharding_dim": config.get("embedding_sharding_dim", 0),
        "quant_algo": quantization.get("quant_algo"),
        "kv_cache_quant_algo": quantization.get("kv_cache_quant_algo"),
    }
