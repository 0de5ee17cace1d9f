"""What config.json of a TensorRT-LLM checkpoint says, held against its tensors and against what crossdock recorded.

A field that is there is compared: an engine would be built by it. Facts: TensorRT-LLM 0.14.0.dev2024100800,
`models/modeling_utils.py`, `layers/attention.py` (PositionEmbeddingType).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from crossdock.errors import Problem

_POSITIONS = MappingProxyType({"rope_gpt_neox": False, "learned_absolute": True})  # read here -> with a table
_BIASES = MappingProxyType({"attn_bias": ".attention.qkv.bias", "mlp_bias": ".mlp.fc.bias", "bias": ".dense.bias"})
# activation that crossdock recorded -> what config.json may call it
_ACTIVATIONS = MappingProxyType({
    "silu": ("silu", "swiglu", "fast-swiglu", "swish"), "relu": ("relu",), "relu2": ("squared-relu", "relu2"),
    "gelu": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "geglu"),
    "gelu_tanh": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "geglu"),
})  # fmt: skip


def contradictions(
    config: Mapping[str, Any], recorded: Mapping[str, Any], names: Collection[str], dtypes: Collection[str], where: str
) -> list[Problem]:
    """A problem for each field that says otherwise than the tensors (their names and dtypes) or than `recorded`."""
    problems = []

    def differs(key: str, expected: str, got: Any, cause: str) -> None:
        what, at = f"{key} contradicts the rest of the checkpoint", f"{key} in {where}"
        problems.append(Problem(what, at, expected, repr(got)[:80], cause))

    position = config.get("position_embedding_type")
    has_table = any(name.endswith("position_embedding.weight") for name in names)
    if position is not None and (not isinstance(position, str) or position not in _POSITIONS):
        differs(
            "position_embedding_type",
            " or ".join(_POSITIONS),
            position,
            "crossdock supports no other position embedding",
        )
    elif position is not None and _POSITIONS[position] and not has_table:
        differs("position_embedding_type", "rope_gpt_neox", position, "the checkpoint has no position table")
    for key, ending in _BIASES.items():
        value = config.get(key)
        there = any(name.endswith(ending) for name in names)
        if value is not None and value is not there:
            differs(key, str(there).lower(), value, f"tensors *{ending} are {'present' if there else 'absent'}")
    quantization = config.get("quantization") or {}
    if not isinstance(quantization, dict):
        differs("quantization", "an object", quantization, "an edited file")
    elif quantization.get("quant_algo") == "FP8" and "float8_e4m3fn" not in dtypes:
        differs("quantization.quant_algo", "null", "FP8", "no weight is stored in fp8")
    activation, own = config.get("hidden_act"), recorded.get("hidden_act")
    if isinstance(own, str) and activation not in _ACTIVATIONS.get(own, (own,)):
        differs("hidden_act", " or ".join(_ACTIVATIONS.get(own, (own,))), activation, f"crossdock wrote it for {own}")
    length = recorded.get("max_position_embeddings")
    if length is not None and config.get("max_position_embeddings") not in (None, length):
        differs("max_position_embeddings", str(length), config["max_position_embeddings"], "crossdock wrote another")
    return problems
