"""What a GGUF file must hold for a Hugging Face model, as plain numpy per family: tensors, types and keys.

Written from llama.cpp's converter (conversion/llama.py, gpt2.py, qwen.py, deepseek.py, nemotron.py and
base.py as in llama-cpp-python 0.3.36), never from crossdock's layout files. For every recipe of
tests/support/hf_models.py that the converter accepts, tensors and keys were equal to its own output; two differ on
purpose: it forgets gpt2's n_inner and writes vocab_size of gpt2 and qwen models only together with a
tokenizer. Of gpt_bigcode without multi_query it writes one KV head and leaves the rows as they are, which
llama.cpp computes wrongly: the rules here are what it computes rightly. Of falcon it knows neither context
length, rope base nor width of the MLP, and always writes those of the 7B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Config = Mapping[str, Any]

ARCHITECTURES = {
    "gpt2": "gpt2",
    "gpt_bigcode": "starcoder",
    "falcon": "falcon",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "gpt_neox": "gptneox",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "nemotron": "nemotron",
}
# Hugging Face name inside a layer -> GGUF name inside a block; {} is "weight" or "bias"
PLAIN = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
GEMMA2_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
EXPERT_PARTS = {
    "w1": "gate",
    "w2": "down",
    "w3": "up",
    "gate_proj": "gate",
    "down_proj": "down",
    "up_proj": "up",
}
NEOX_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
FALCON_LAYER = {
    "input_layernorm": "attn_norm",
    "ln_attn": "attn_norm_2",
    "ln_mlp": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
GPT2_LAYER = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def gguf_tensors(state: Mapping[str, Array], config: Config) -> dict[str, Array]:
    """{GGUF tensor name: float32 array in numpy order} for all tensors of a Hugging Face model."""
    family = config["model_type"]
    if family in ("gpt2", "gpt_bigcode"):
        return _gpt2(state, config)
    if family == "falcon":
        return _falcon(state, config)
    if family == "gpt_neox":
        return _neox(state, config)
    out: dict[str, Array] = {}
    experts: dict[str, dict[int, Array]] = {}
    for name, tensor in state.items():
        centred = family in ("nemotron", "gemma", "gemma2") and name.endswith("norm.weight")
        value = tensor + np.float32(1) if centred else tensor
        if name == "lm_head.weight":
            if not config.get("tie_word_embeddings"):
                out["output.weight"] = value
        elif name == "model.embed_tokens.weight":
            out["token_embd.weight"] = value
        elif name.startswith("model.norm."):
            out["output_norm." + name.rsplit(".", 1)[1]] = value
        else:
            layer, inner, kind = _split(name)
            expert = re.fullmatch(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)", inner)
            if expert:
                stacked = f"blk.{layer}.ffn_{EXPERT_PARTS[expert[2]]}_exps.weight"
                experts.setdefault(stacked, {})[int(expert[1])] = value
            elif inner == "self_attn.kv_b_proj":
                out |= _kv_b(layer, value, config)
            elif inner == "mlp.gate" and kind == "e_score_correction_bias":
                out[f"blk.{layer}.exp_probs_b.bias"] = value
            else:
                if family in ("llama", "mistral", "mixtral") and inner in (
                    "self_attn.q_proj",
                    "self_attn.k_proj",
                ):
                    heads = "num_attention_heads" if "q_proj" in inner else "num_key_value_heads"
                    value = rope_pairs(value, config[heads])
                names = PLAIN | GEMMA2_NORMS if family == "gemma2" else PLAIN
                out[f"blk.{layer}.{names[inner]}.{kind}"] = value
    for stacked, parts in experts.items():
        out[stacked] = np.stack([parts[i] for i in range(len(parts))])
    rope = rope_of(config)
    if rope.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(rope, head_dim(config))
    return out


def _split(name: str) -> tuple[int, str, str]:
    """model.layers.3.self_attn.q_proj.weight -> (3, "self_attn.q_proj", "weight")."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(\w+)", name)
    assert match, name
    return int(match[1]), match[2], match[3]


def rope_pairs(tensor: Array, heads: int) -> Array:
    """Rows of each head from [first halves, second halves] to adjacent pairs: ggml's "norm" rope order."""
    rows = tensor.shape[0] // heads
    order = [h * rows + half * rows // 2 + i for h in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return np.take(tensor, order, axis=0)


def _kv_b(layer: int, tensor: Array, config: Config) -> dict[str, Array]:
    """DeepSeek's kv_b_proj cut into K (transposed per head) and V, one matrix per head."""
    heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    per_head = nope + value
    keys = [tensor[h * per_head : h * per_head + nope].T for h in range(heads)]
    values = [tensor[h * per_head + nope : (h + 1) * per_head] for h in range(heads)]
    return {f"blk.{layer}.attn_k_b.weight": np.stack(keys), f"blk.{layer}.attn_v_b.weight": np.stack(values)}


def llama3_divisors(rope: Config, dimensions: int) -> Array:
    """The divisors of each rope frequency that Llama 3.1's scaling means, [dimensions / 2]."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for frequency in frequencies:
        turns = old * frequency / (2 * np.pi)  # rotations over the original context
        if turns > high:
            divisors.append(1.0)
        elif turns < low:
            divisors.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def _gpt2(state: Mapping[str, Array], config: Config) -> dict[str, Array]:
    out: dict[str, Array] = {}
    whole = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    for name, tensor in state.items():
        inner, kind = name.removeprefix("transformer.").rsplit(".", 1)
        match = re.fullmatch(r"h\.(\d+)\.(.+)", inner)
        if match is None:
            out[f"{whole[inner]}.{kind}"] = tensor
        else:
            if config["model_type"] == "gpt2" and kind == "weight" and tensor.ndim == 2:
                tensor = tensor.T  # Conv1D
            if match[2] == "attn.c_attn" and not config.get("multi_query", True):
                tensor = _qkv_sorted(tensor, config["n_head"], config["n_head"])
            out[f"blk.{match[1]}.{GPT2_LAYER[match[2]]}.{kind}"] = tensor
    return out


def _falcon(state: Mapping[str, Array], config: Config) -> dict[str, Array]:
    out: dict[str, Array] = {}
    whole = {"word_embeddings": "token_embd", "ln_f": "output_norm", "lm_head": "output"}
    for name, tensor in state.items():
        inner, kind = name.removeprefix("transformer.").rsplit(".", 1)
        match = re.fullmatch(r"h\.(\d+)\.(.+)", inner)
        if match is None:
            out[f"{whole[inner]}.{kind}"] = tensor
            continue
        if match[2].endswith("query_key_value"):
            tensor = _qkv_sorted(tensor, config["num_attention_heads"], falcon_groups(config))
        out[f"blk.{match[1]}.{FALCON_LAYER[match[2]]}.{kind}"] = tensor
    return out


def _neox(state: Mapping[str, Array], config: Config) -> dict[str, Array]:
    out: dict[str, Array] = {}
    whole = {"embed_in": "token_embd", "final_layer_norm": "output_norm", "lm_head": "output", "embed_out": "output"}
    for name, tensor in state.items():
        inner, kind = name.removeprefix("gpt_neox.").rsplit(".", 1)
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", inner)
        if match is None:
            out[f"{whole[inner]}.{kind}"] = tensor
            continue
        if match[2].endswith("query_key_value"):
            heads = config["num_attention_heads"]
            tensor = _qkv_sorted(tensor, heads, heads)
        out[f"blk.{match[1]}.{NEOX_LAYER[match[2]]}.{kind}"] = tensor
    return out


def falcon_groups(config: Config) -> int:
    return int(config["num_kv_heads"]) if config["new_decoder_architecture"] else 1


def _qkv_sorted(tensor: Array, heads: int, groups: int) -> Array:
    """Rows of a fused matrix from (query heads, key, value) per KV head to all queries, all keys, all values."""
    per_group = heads // groups
    parts = tensor.reshape(groups, per_group + 2, -1, *tensor.shape[1:])
    three = (parts[:, :per_group], parts[:, per_group], parts[:, per_group + 1])
    return np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in three])


def stays_f32(name: str, tensor: Array) -> bool:
    """Whether the converter keeps a tensor in float32 whatever type was asked for."""
    small = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight")
    return tensor.ndim == 1 or name.endswith(small)


def expected_type(name: str, tensor: Array, wanted: str, block: int) -> str:
    """ggml's type name of a tensor in a file of type `wanted` ("F32", "Q8_0"), with `block` elements a
    block."""
    if wanted == "F32" or stays_f32(name, tensor):
        return "F32"
    return wanted if tensor.shape[-1] % block == 0 else "F16"


def rope_of(config: Config) -> dict[str, Any]:
    """The rope settings of a config.json of either generation, in transformers 5's words."""
    if config.get("rope_parameters"):
        return dict(config["rope_parameters"])
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    return {"rope_theta": config.get("rope_theta", 10000.0), **scaling}


def head_dim(config: Config) -> int:
    """Size of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
