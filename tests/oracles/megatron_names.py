"""Hugging Face models in Megatron's names, for families that Megatron's own arguments have no words for.

The rules are those of NeMo and Megatron-Bridge (gemma2_bridge.py, falcon's input_layernorm and pre_mlp_layernorm),
written out here a second time; they share nothing with crossdock.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles.files import hf_state
from support import hf_models

State = dict[str, NDArray[np.float32]]
GEMMA_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
}
GEMMA_NORMS = {
    "gemma": {"post_attention_layernorm.weight": "pre_mlp_layernorm.weight"},
    "gemma2": {
        "post_attention_layernorm.weight": "self_attention.linear_proj.post_layernorm.weight",
        "pre_feedforward_layernorm.weight": "pre_mlp_layernorm.weight",
        "post_feedforward_layernorm.weight": "mlp.linear_fc2.post_layernorm.weight",
    },
}


def falcon(folder: Path) -> tuple[State, argparse.Namespace]:
    """A Falcon as Megatron's names and args: rows of query_key_value are those of linear_qkv."""
    config = hf_models.read_config(folder)
    names = {
        "transformer.word_embeddings": "embedding.word_embeddings", "transformer.ln_f": "decoder.final_layernorm",
        "lm_head": "output_layer", "input_layernorm": "input_layernorm", "ln_attn": "input_layernorm",
        "ln_mlp": "pre_mlp_layernorm", "self_attention.query_key_value": "self_attention.linear_qkv",
        "self_attention.dense": "self_attention.linear_proj", "mlp.dense_h_to_4h": "mlp.linear_fc1",
        "mlp.dense_4h_to_h": "mlp.linear_fc2",
    }  # fmt: skip
    state = {}
    for name, tensor in hf_state(folder).items():
        inner, kind = name.rsplit(".", 1)
        match = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", inner)
        new = f"decoder.layers.{match[1]}.{names[match[2]]}" if match else names[inner]
        state[f"{new}.{kind}"] = tensor
    groups = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
    return state, _args(
        config, num_query_groups=groups, ffn_hidden_size=config["ffn_hidden_size"], normalization="LayerNorm",
        swiglu=False, layernorm_epsilon=config["layer_norm_epsilon"],
    )  # fmt: skip


def gemma(folder: Path) -> tuple[State, argparse.Namespace]:
    """A Gemma or Gemma 2: norms stay gamma - 1, and swiglu only says that the MLP is gated."""
    config, values = hf_models.read_config(folder), hf_state(folder)
    state: State = {
        "embedding.word_embeddings.weight": values["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": values["model.norm.weight"],
    }
    groups, dim, hidden = config["num_key_value_heads"], config["head_dim"], config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix, new = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        for name, target in (GEMMA_LAYER | GEMMA_NORMS[config["model_type"]]).items():
            state[new + target] = values[prefix + name]
        q, k, v = (values[f"{prefix}self_attn.{part}_proj.weight"].reshape(groups, -1, hidden) for part in "qkv")
        assert k.shape[1] == dim
        state[new + "self_attention.linear_qkv.weight"] = np.concatenate([q, k, v], 1).reshape(-1, hidden)
        gates = [values[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        state[new + "mlp.linear_fc1.weight"] = np.concatenate(gates)
    return state, _args(
        config, num_query_groups=groups, kv_channels=dim, ffn_hidden_size=config["intermediate_size"],
        normalization="RMSNorm", swiglu=True, layernorm_epsilon=config["rms_norm_eps"],
        layernorm_zero_centered_gamma=True, query_pre_attn_scalar=config.get("query_pre_attn_scalar"),
        window_size=[config["sliding_window"] - 1, 0] if config.get("sliding_window") else None,
    )  # fmt: skip


def _args(config: dict[str, Any], **more: Any) -> argparse.Namespace:
    return argparse.Namespace(
        num_layers=config["num_hidden_layers"], hidden_size=config["hidden_size"],
        num_attention_heads=config["num_attention_heads"], group_query_attention=True, add_bias_linear=False,
        position_embedding_type="rope", rotary_base=int(config["rope_parameters"]["rope_theta"]),
        max_position_embeddings=config["max_position_embeddings"], vocab_size=config["vocab_size"],
        untie_embeddings_and_output_weights=not config["tie_word_embeddings"], params_dtype="float32",
        num_experts=None, **more,
    )  # fmt: skip
