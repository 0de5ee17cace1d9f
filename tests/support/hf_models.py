"""Tiny random Hugging Face models, one recipe per kind of model, written by transformers itself.

Sizes are odd on purpose (key-value heads differ from heads, ffn from hidden, vocabulary from any multiple of
64), so that a wrong order of axes shows in values or in logits. Nothing here knows crossdock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# every recipe: the config class of transformers and its arguments
LLAMA: dict[str, Any] = {
    "vocab_size": 203,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ROPE_500K = ROPE | {"rope_theta": 500000.0}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPE_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GPT2: dict[str, Any] = {
    "vocab_size": 203,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 3,
    "n_inner": 160,
    "n_positions": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
QWEN3_MOE = LLAMA | {
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "rope_parameters": ROPE,
}
DEEPSEEK: dict[str, Any] = LLAMA | {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rope_parameters": ROPE,
}
DEEPSEEK_V2 = DEEPSEEK | {
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": False,
}
NEMOTRON = LLAMA | {
    "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
    "partial_rotary_factor": 0.5,
    "head_dim": 8,
}
FALCON: dict[str, Any] = {
    "vocab_size": 203,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "ffn_hidden_size": 160,
    "max_position_embeddings": 96,
    "rope_parameters": ROPE,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON_NEW = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
GEMMA = LLAMA | {"head_dim": 16, "rope_parameters": ROPE, "tie_word_embeddings": True}
GEMMA2 = GEMMA | {"sliding_window": 12, "query_pre_attn_scalar": 16}
STABLELM = LLAMA | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.25}, "layer_norm_eps": 1e-5}
NEOX = LLAMA | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-default-inner": ("GPT2Config", GPT2 | {"n_inner": None}),
    "starcoder": ("GPTBigCodeConfig", GPT2),
    "starcoder-heads": ("GPTBigCodeConfig", GPT2 | {"multi_query": False, "n_inner": None}),
    "llama": ("LlamaConfig", LLAMA | {"rope_parameters": ROPE}),
    "llama-unaligned": (
        "LlamaConfig",
        LLAMA | {"hidden_size": 48, "intermediate_size": 80, "rope_parameters": ROPE},
    ),
    "llama-head-dim": ("LlamaConfig", LLAMA | {"head_dim": 12, "rope_parameters": ROPE}),
    "llama3": ("LlamaConfig", LLAMA | {"rope_parameters": ROPE_LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": ("LlamaConfig", LLAMA | {"rope_parameters": ROPE_LINEAR}),
    "llama-bias": (
        "LlamaConfig",
        LLAMA | {"rope_parameters": ROPE, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": ("MistralConfig", LLAMA | {"rope_parameters": ROPE, "head_dim": 8, "sliding_window": 64}),
    "qwen2": ("Qwen2Config", LLAMA | {"rope_parameters": ROPE | {"rope_theta": 1e6}, "rms_norm_eps": 1e-6}),
    "qwen2-tied": ("Qwen2Config", LLAMA | {"rope_parameters": ROPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16, "rope_parameters": ROPE, "tie_word_embeddings": True}),
    "mixtral": (
        "MixtralConfig",
        LLAMA | {"num_local_experts": 5, "num_experts_per_tok": 2, "rope_parameters": ROPE},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", QWEN3_MOE),
    "qwen3_moe-mixed": ("Qwen3MoeConfig", QWEN3_MOE | {"mlp_only_layers": [1]}),
    "qwen3_moe-sparse-step": (
        "Qwen3MoeConfig",
        QWEN3_MOE | {"decoder_sparse_step": 2, "norm_topk_prob": False},
    ),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
    "deepseek_v2": ("DeepseekV2Config", DEEPSEEK_V2),
    "nemotron": ("NemotronConfig", NEMOTRON),
    "starcoder2": ("Starcoder2Config", LLAMA | {"rope_parameters": ROPE_500K}),
    "starcoder2-bare": ("Starcoder2Config", LLAMA | {"rope_parameters": ROPE, "use_bias": False, "sliding_window": 40}),
    "stablelm": ("StableLmConfig", STABLELM | {"use_qkv_bias": True}),
    "stablelm-parallel": ("StableLmConfig", STABLELM | {"use_parallel_residual": True}),
    "gpt_neox": ("GPTNeoXConfig", NEOX),
    "gpt_neox-sequential": ("GPTNeoXConfig", NEOX | {"use_parallel_residual": False}),
    "gemma": ("GemmaConfig", GEMMA),
    "gemma2": ("Gemma2Config", GEMMA2),
    "gemma2-own-scale": ("Gemma2Config", GEMMA2 | {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0}),
    "falcon": ("FalconConfig", FALCON),
    "falcon-new": ("FalconConfig", FALCON_NEW),
    "falcon-one-norm": (
        "FalconConfig",
        FALCON_NEW | {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False, "rope_parameters": ROPE_500K},
    ),
    "falcon-sequential": ("FalconConfig", FALCON | {"parallel_attn": False, "multi_query": False, "bias": True}),
}

# recipes that llama.cpp has no place for, and how that is said
NOT_IN_LLAMA_CPP = {
    "qwen3_moe-mixed": "mlp_only_layers",
    "qwen3_moe-sparse-step": "decoder_sparse_step",
    "gemma2-own-scale": "llama.cpp's gemma2 divides scores by the root of head_dim",
    "starcoder2-bare": "llama.cpp's starcoder2 has biases in every matrix",
    "falcon-sequential": "llama.cpp's falcon has attention and MLP side by side",
}
ZERO_CENTRED = ("nemotron", "gemma", "gemma2")  # norms stored as gamma - 1
# keys of config.json that transformers 4 did not write
_DROPPED_BY_4 = ("dtype", "rope_parameters", "layer_types", "output_router_logits")


def make_hf(
    recipe: str, folder: Path, *, dtype: str = "bfloat16", seed: int = 0, shard: str = "5GB", **overrides: Any
) -> Path:
    """Write a random model of `recipe` into `folder` as transformers saves it; values are exact in bfloat16.

    `shard` is the largest shard ("40KB" makes several). Overrides go to the config class. Returns `folder`.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    config_class, arguments = RECIPES[recipe]
    config = getattr(transformers, config_class)(**(arguments | overrides))
    generator = torch.Generator().manual_seed(seed)
    models: Any = transformers.AutoModelForCausalLM
    model = models.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            tensor.copy_(_values(name, tensor.shape, config.model_type, generator))
        for name, tensor in sorted(model.named_buffers()):
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator).mul(0.2).bfloat16().float())
    model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def _values(name: str, shape: Any, model_type: str, generator: Any) -> Any:
    """Random values in the range that the parameter `name` has in a trained model: logits come out near 1."""
    import torch

    noise = torch.randn(shape, generator=generator)
    if "norm" in name or ".ln_" in name:
        centre = 1.0 if name.endswith("weight") and model_type not in ZERO_CENTRED else 0.0
        noise = centre + 0.2 * noise
    elif len(shape) == 1:
        noise = 0.3 * noise
    else:
        noise = 0.08 * noise
    return noise.bfloat16().float()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict."""
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Replace config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def as_transformers4(folder: Path) -> Path:
    """Rewrite config.json as transformers 4 would have written it: torch_dtype, rope_theta, rope_scaling,
    n_ctx."""
    config = read_config(folder)
    rope = config.get("rope_parameters") or {}
    old = {key: value for key, value in config.items() if key not in _DROPPED_BY_4}
    old["torch_dtype"] = config.get("dtype", "float32")
    old["transformers_version"] = "4.46.0"
    if rope:
        old["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
            old["rope_scaling"] = scaling
        else:
            old["rope_scaling"] = None
        if "partial_rotary_factor" in rope:
            old["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config["model_type"] == "gpt2":
        old["n_ctx"] = config["n_positions"]
    if config["model_type"] == "deepseek_v3":
        old |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "ep_size": 1}
        old.pop("head_dim", None)
    if config["model_type"] == "qwen3_moe" and "num_local_experts" in old:
        old["num_experts"] = old.pop("num_local_experts")
    write_config(folder, old)
    return folder


def as_bin(folder: Path, *, legacy: bool = False, shards: int = 1) -> Path:
    """Replace the safetensors of `folder` by pytorch_model.bin files, zip or legacy, with an index if
    several."""
    import torch
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        own = names[shard::shards]
        file = folder / ("pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin")
        tensors = {name: state[name] for name in own}
        torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
        weight_map |= dict.fromkeys(own, file.name)
    if shards > 1:
        size = sum(t.numel() * t.element_size() for t in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))
    return folder
