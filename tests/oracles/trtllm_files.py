"""Folders of rank files, read by safetensors' own library, and which config.json mean the same to TensorRT-LLM.

Facts on the loader: TensorRT-LLM 0.14 (functional.py ACT2FN, models/__init__.py MODEL_MAP, layers/moe.py has_moe).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

# all of them are the tanh approximation
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
MODELS = {
    "GPT2LMHeadModel": "GPTForCausalLM", "GPTBigCodeForCausalLM": "GPTForCausalLM",
    "MixtralForCausalLM": "LlamaForCausalLM", "LLaMAForCausalLM": "LlamaForCausalLM",
}  # fmt: skip
# Megatron's exporter writes the keys of every model into each, and copies of what stands in `mapping`
READ_BY = {
    "GPTForCausalLM": {
        "gpt_variant", "bias", "q_scaling", "embedding_scale", "apply_query_key_layer_scaling", "rotary_pct",
        "rotary_base", "rotary_scaling", "inner_layernorm", "norm_before_bmm1", "moe",
    },
    "LlamaForCausalLM": {"mlp_bias", "attn_bias", "rotary_base", "rotary_scaling", "residual_mlp", "moe",
                         "disable_weight_only_quant_plugin", "remove_duplicated_kv_heads"},
    "Qwen2ForCausalLM": {"mlp_bias", "attn_bias", "rotary_base", "rotary_scaling", "moe", "qwen_type",
                         "moe_intermediate_size", "moe_shared_expert_intermediate_size",
                         "disable_weight_only_quant_plugin"},
    "FalconForCausalLM": {"bias", "parallel_attention", "new_decoder_architecture"},
    "GemmaForCausalLM": {"rotary_base", "rotary_scaling", "attn_bias", "mlp_bias", "inter_layernorms"},
}  # fmt: skip
OF_ALL = {
    "architecture", "dtype", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "logits_dtype", "norm_epsilon", "position_embedding_type", "max_position_embeddings", "num_key_value_heads",
    "intermediate_size", "mapping", "quantization", "use_parallel_embedding", "embedding_sharding_dim",
    "share_embedding_table", "head_size", "qk_layernorm",
}  # fmt: skip


def rank_files(folder: Path) -> dict[str, Tensors]:
    """File name -> tensor name -> dtype, shape, bytes, of every rankN.safetensors."""
    return {file.name: _tensors(file) for file in sorted(folder.glob("rank*.safetensors"))}


def _tensors(file: Path) -> Tensors:
    from safetensors import deserialize

    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in deserialize(file.read_bytes())
    }


def what_the_loader_reads(folder: Path) -> dict[str, Any]:
    """config.json as its model reads it: aliases by one name, keys of other models left out."""
    config = json.loads((folder / "config.json").read_bytes())
    model = MODELS.get(config["architecture"], config["architecture"])
    out = {key: value for key, value in config.items() if key in OF_ALL | READ_BY[model]}
    out["architecture"] = model
    if out["hidden_act"] in GELU:
        out["hidden_act"] = "gelu"
    experts = out.pop("moe", None)
    if experts and experts["num_experts"] > 1:
        out["moe"] = {key: experts[key] for key in ("num_experts", "top_k", "normalization_mode")}
    return out
