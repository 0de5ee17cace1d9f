"""Names of Megatron models from before megatron-core (2020 to 2024), as core spells them.

Only names differ: for checkpoint_version 2.0 and later the rows of query_key_value are those of linear_qkv. Facts
from Megatron-LM v2.6 (`megatron/model/`, `checkpointing.py`) and core_v0.10.0 (`megatron/legacy/model/`).
"""

from __future__ import annotations

import re

from crossdock.errors import FormatError

ROOT = "language_model."
_OUTSIDE = {
    "language_model.embedding.word_embeddings.weight": "embedding.word_embeddings.weight",
    "language_model.embedding.position_embeddings.weight": "embedding.position_embeddings.weight",
    "language_model.output_layer.weight": "output_layer.weight",
    "word_embeddings_for_head.weight": "output_layer.weight",
}
_LAYER = re.compile(r"language_model\.(?:encoder|transformer)\.layers\.(\d+)\.(.+)\.(weight|bias)\Z")
_FINAL = re.compile(r"language_model\.(?:encoder|transformer)\.final_(?:layer)?norm\.(weight|bias)\Z")
_INNER = {
    "input_layernorm": "input_layernorm",
    "input_norm": "input_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "post_attention_norm": "pre_mlp_layernorm",
    "attention.query_key_value": "self_attention.linear_qkv",
    "attention.dense": "self_attention.linear_proj",
    "self_attention.query_key_value": "self_attention.linear_qkv",
    "self_attention.dense": "self_attention.linear_proj",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
}


def is_older(name: str) -> bool:
    """True for a name that a model from before megatron-core saves."""
    return name.startswith((ROOT, "word_embeddings_for_head."))


def core_name(name: str) -> str:
    """The name in megatron-core of a tensor of an older model; unknown names stay as they are."""
    if (layer := _LAYER.match(name)) and layer[2] in _INNER:
        return f"decoder.layers.{layer[1]}.{_INNER[layer[2]]}.{layer[3]}"
    if final := _FINAL.match(name):
        return f"decoder.final_layernorm.{final[1]}"
    return _OUTSIDE.get(name, name)


def check_version(version: object, where: str) -> None:
    """Refuse an order of the query, key and value rows that core does not have. Raises FormatError."""
    if not isinstance(version, int | float) or version < 2.0:
        raise FormatError(
            "a Megatron checkpoint with another order of the query, key and value rows",
            where=where,
            expected="checkpoint_version 2.0 or later",
            got=f"checkpoint_version {version if isinstance(version, int | float) else 'missing (0)'}",
            fix="load it with Megatron-LM (any version) and save it again, which reorders them",
        )
