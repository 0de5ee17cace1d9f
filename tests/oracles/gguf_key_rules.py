"""What a GGUF file must hold for a Hugging Face model, as plain Python per family: the keys that describe the model.

Written as `gguf_rules` is, from llama.cpp's converter, never from crossdock's layout files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oracles.gguf_rules import ARCHITECTURES, Config, falcon_groups, head_dim, rope_of

Keys = dict[str, tuple[str, Any]]


def gguf_keys(config: Config) -> Keys:
    """{key: (type, value)} of all keys that describe the model: general.* and tokenizer.* left out."""
    architecture = ARCHITECTURES[config["model_type"]]
    entries: dict[str, Any] = {}
    if architecture in ("gpt2", "starcoder"):
        inner = config.get("n_inner") or 4 * config["n_embd"]
        entries = {
            "block_count": config["n_layer"],
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": inner,
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
            "vocab_size": config["vocab_size"],
        }
        if architecture == "starcoder":
            entries["attention.head_count_kv"] = 1 if config["multi_query"] else config["n_head"]
    elif architecture == "falcon":
        entries = _falcon_keys(config)
    else:
        entries = _common_keys(config) | _family_keys(config)
        if architecture == "gptneox":
            del entries["attention.head_count_kv"]
    return {f"{architecture}.{key}": (_key_type(value), value) for key, value in entries.items()}


def _key_type(value: object) -> str:
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    return kinds[type(value)]


def _falcon_keys(config: Config) -> dict[str, Any]:
    theta = rope_of(config)["rope_theta"]
    return {
        "tensor_data_layout": "jploski",
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["ffn_hidden_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": falcon_groups(config),
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "vocab_size": config["vocab_size"],
    } | ({"rope.freq_base": float(theta)} if theta != 10000 else {})


def _common_keys(config: Config) -> dict[str, Any]:
    rope = rope_of(config)
    entries: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }
    layer_norm: Any = config.get("norm_epsilon", config.get("layer_norm_eps"))
    epsilon: Any = config.get("rms_norm_eps", config.get("norm_eps"))
    if layer_norm is not None:
        entries["attention.layer_norm_epsilon"] = float(layer_norm)
    else:
        entries["attention.layer_norm_rms_epsilon"] = float(epsilon)  # nemotron too: the converter writes both
    if config.get("head_dim"):
        entries["attention.key_length"] = entries["attention.value_length"] = config["head_dim"]
    if config["model_type"] in ("gemma", "gemma2", "stablelm", "gpt_neox"):
        del entries["rope.freq_base"]  # llama.cpp takes 10000
    if rope["rope_type"] == "linear":
        entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return entries


def _llama_keys(config: Config) -> dict[str, Any]:
    return {"rope.dimension_count": head_dim(config)}


def _mixtral_keys(config: Config) -> dict[str, Any]:
    used = config["num_experts_per_tok"]
    return _llama_keys(config) | {"expert_count": config["num_local_experts"], "expert_used_count": used}


def _qwen3_moe_keys(config: Config) -> dict[str, Any]:
    experts = config.get("num_experts") or config["num_local_experts"]
    return {
        "expert_count": experts,
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }


def _stablelm_keys(config: Config) -> dict[str, Any]:
    partial: Any = rope_of(config)["partial_rotary_factor"]
    parallel = config["use_parallel_residual"]
    return {"rope.dimension_count": int(partial * head_dim(config)), "use_parallel_residual": parallel}


def _gemma2_keys(config: Config) -> dict[str, Any]:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return {cap: float(config[cap]) for cap in caps} | {"attention.sliding_window": config["sliding_window"]}


def _nemotron_keys(config: Config) -> dict[str, Any]:
    rope = rope_of(config)
    partial: Any = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return {
        "attention.layer_norm_epsilon": float(config["norm_eps"]),
        "rope.dimension_count": int(partial * head_dim(config)),
        "rope.scaling.type": "none",
    }


def _deepseek_keys(config: Config) -> dict[str, Any]:
    lora, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": lora + rope,
        "attention.value_length": lora,
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": lora,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rope,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_gating_func": 2,
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": True,
    }


def _deepseek_v2_keys(config: Config) -> dict[str, Any]:
    """Softmax scores are said by number; without groups nothing is said of them, nor of sums that are not made."""
    left_out = ("expert_group_count", "expert_group_used_count", "expert_weights_norm")
    assert config["n_group"] == 1
    return {key: value for key, value in _deepseek_keys(config).items() if key not in left_out} | {
        "expert_gating_func": 1
    }


def _family_keys(config: Config) -> dict[str, Any]:
    by_family: dict[str, Callable[[Config], dict[str, Any]]] = {
        "llama": _llama_keys,
        "mistral": _llama_keys,
        "mixtral": _mixtral_keys,
        "qwen3_moe": _qwen3_moe_keys,
        "nemotron": _nemotron_keys,
        "gemma2": _gemma2_keys,
        "stablelm": _stablelm_keys,
        "gpt_neox": _stablelm_keys,
        "deepseek_v2": _deepseek_v2_keys,
        "deepseek_v3": _deepseek_keys,
    }
    own = by_family.get(config["model_type"])
    return own(config) if own else {}
