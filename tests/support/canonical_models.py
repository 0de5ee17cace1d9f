"""Tiny models of every family as canonical tensors whose elements are all different, laid out by lenses in numpy.

The values go through numpy views, not through the planner's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.layout.boxes import steps_of
from crossdock.layout.lenses import Container, Lens, containers, geometry_of
from crossdock.layout.rules import layout
from crossdock.model.config import ModelConfig
from crossdock.model.families import families, family
from crossdock.model.family import Family

Array = NDArray[np.int64]
SIZES: dict[str, Any] = {
    "hidden_size": 6, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4,
    "intermediate_size": 16, "vocab_size": 24, "max_position_embeddings": 5, "norm_eps": 1e-6,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "moe_layers": (0, 1, 2, 3),
}  # fmt: skip
MLA: dict[str, Any] = {
    "q_lora_rank": 8, "kv_lora_rank": 6, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 5,
    "num_key_value_heads": 8, "shared_expert_intermediate_size": 8, "moe_layers": (1, 2, 3), "router_bias": True,
}  # fmt: skip
GPT: dict[str, Any] = {"qkv_bias": True, "attn_out_bias": True, "mlp_bias": True}
MORE: dict[str, dict[str, Any]] = {
    "gpt2": {"num_key_value_heads": 8, "mlp_gated": False, "tie_word_embeddings": True},
    "starcoder": {"num_key_value_heads": 4, "mlp_gated": False, "tie_word_embeddings": True},
    "gpt": GPT | {"position_embedding": "learned"},
    "gptnext": GPT,
    "starcoder2": GPT | {"mlp_gated": False, "hidden_act": "gelu"},
    "stablelm": {"qkv_bias": True, "mlp_gated": True},
    "gpt_neox": GPT | {"mlp_gated": False, "hidden_act": "gelu", "num_key_value_heads": 8},
    "falcon": GPT | {"mlp_gated": False, "parallel_attn": True},
    "llama": {"qkv_bias": True, "attn_out_bias": True, "mlp_bias": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS | {"qk_norm": True},
    "deepseek_v2": EXPERTS | MLA | {"router_bias": False, "norm_topk_prob": False},
    "deepseek_v3": EXPERTS | MLA,
    "nemotron": {"mlp_gated": False},
    "nemotron_nas": {
        "num_key_value_heads_per_layer": (4, 0, 0, 8),
        "linear_attention_layers": (2,),
        "intermediate_size_per_layer": (256, 512, 0, 0),
        "linear_mlp_layers": (3,),
        "hidden_size": 8,
    },
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {
        "tie_word_embeddings": True,
        "post_norms": True,
        "query_pre_attn_scalar": 4.0,
        "sliding_window": 3,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "layer_types": ("sliding_attention", "full_attention") * 2,
    },
}
NUMBERS = {"norm_offset": 0, "mla_down_cut": False, "use_parallel_embedding": False, "embedding_sharding_dim": 0}
# families that the format has no model for, and that say so
LACKING = {
    ("hf", "gpt"), ("hf", "gptnext"), ("gguf", "gptnext"), ("hf", "llama_2023"), ("gguf", "llama_2023"),
    ("hf", "llama_lora"), ("gguf", "llama_lora"), ("gguf", "bitnet"),
}  # fmt: skip
# families that say nothing about the format: no checkpoint of it is of them
UNHELD = {(name, kind) for name in ("megatron", "megatron_rank") for kind in ("llama_2023", "llama_lora")}
# families of Megatron and TensorRT-LLM, and parts of these; all others are in Hugging Face's format and in GGUF alone
TRAINED = frozenset(
    ("deepseek_v2", "deepseek_v3", "falcon", "gemma", "gemma2", "gpt", "gpt2", "gpt_neox", "gptnext", "llama",
     "llama_2023", "llama_lora", "mistral", "mixtral", "nemotron", "nemotron_nas", "qwen2", "qwen3", "qwen3_moe",
     "stablelm", "starcoder", "starcoder2")
)  # fmt: skip
# all but an adapter, which has formats of its own; the others go both ways, byte by byte, in tests/families
FAMILIES = sorted(TRAINED - {"llama_lora"})
UNHELD |= {(name, kind) for name in ("megatron", "megatron_rank", "trtllm") for kind in families().keys() - TRAINED}
# families of today that are trained with Megatron and go to Hugging Face's format and GGUF: tests/interop
OF_MEGATRON = (
    "deepseek_v32", "gemma3_text", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss", "hy_v3", "minimax_m2",
    "nemotron_h", "olmoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
)  # fmt: skip
UNHELD -= {(kind, name) for kind in ("megatron", "megatron_rank") for name in OF_MEGATRON}
# tensors that the format has no place for: models that have them are refused
UNPLACED = {("hf", "gpt"): "pos_embed", ("gguf", "nemotron_nas"): "ffn_linear"}


def config_of(name: str, **changes: Any) -> ModelConfig:
    """A small configuration of the family, with every optional tensor that it may have."""
    return ModelConfig(family=name, **(SIZES | MORE.get(name, {}) | changes))


def laid_out(
    format_name: str, config: ModelConfig, ranks: dict[str, int] | None = None, numbers: dict[str, Any] | None = None
) -> Iterator[tuple[int, Container]]:
    """(which alternative, container) of everything that a model has in a format, copies on later stages aside."""
    chosen = family(config.family)
    rules, present = layout(format_name, chosen), chosen.present(config)
    geometry = geometry_of(chosen, config, ranks, numbers=rules.numbering(config.as_dict()))
    for rule in rules.rules:
        if not set(rule.tensors) <= set(present) or rule.stage == "later":
            continue
        if rule.when is not None and not rule.when.evaluate({**config.as_dict(), **NUMBERS, **(numbers or {})}):
            continue
        for turn, pattern in enumerate(rule.patterns):
            for container in containers(rule, pattern, geometry):
                yield turn, container


def view(flat: Array, container: Container, lens: Lens) -> Array:
    """The lens as a numpy view on the flat data of its container: one axis per canonical axis, in the lens's order."""
    steps = steps_of(container.shape)
    start = sum(a * b for a, b in zip(lens.starts, steps, strict=True))
    strides = [p.step * steps[p.dim] * flat.itemsize if p.dim >= 0 else 0 for p in lens.axes]
    shape = [p.high - p.low for p in lens.axes]
    last = start + sum((n - 1) * s // flat.itemsize for n, s in zip(shape, strides, strict=True))
    assert 0 <= start <= last < flat.size
    return np.lib.stride_tricks.as_strided(flat[start:], shape, strides)


def canonical(chosen: Family, config: ModelConfig) -> dict[str, Array]:
    """Every canonical tensor with a number of its own in every place; as long as its longest layer."""
    count, out = 1, {}
    for name in chosen.present(config):
        shape = places(chosen, config, name).shape
        out[name] = np.arange(count, count + math.prod(shape), dtype=np.int64).reshape(shape)
        count += math.prod(shape)
    return out


def places(chosen: Family, config: ModelConfig, name: str) -> NDArray[np.bool_]:
    """Where the tensor has a value: not in layers that lack it, nor beyond a layer's own sizes."""
    sizes, decl = chosen.sizes(config), chosen.tensors[name]
    layers = chosen.layers_of(decl, config)
    if layers is None:
        return np.ones(list(sizes.of(decl.axes).values()), np.bool_)
    each = {layer: tuple(sizes.of(decl.axes, layer).values()) for layer in layers}
    found = np.zeros((config.num_hidden_layers, *np.max(list(each.values()), axis=0)), np.bool_)
    for layer, shape in each.items():
        found[layer][tuple(slice(size) for size in shape)] = True
    assert decl.axes[0] == "layer"
    return found


def box_of(chosen: Family, lens: Lens) -> tuple[slice, ...]:
    """The canonical box of a lens, in the order of the tensor's axes."""
    ranges = {p.axis: slice(p.low, p.high) for p in lens.axes}
    return tuple(ranges[axis] for axis in chosen.tensors[lens.tensor].axes)


def filled(chosen: Family, tensors: dict[str, Array], container: Container) -> Array:
    """The container's data, put together through its lenses."""
    flat = np.zeros(math.prod(container.shape), np.int64)
    for lens in container.lenses:
        order = [p.axis for p in lens.axes]
        axes = chosen.tensors[lens.tensor].axes
        box = tensors[lens.tensor][box_of(chosen, lens)]
        view(flat, container, lens)[...] = np.transpose(box, [axes.index(axis) for axis in order])
    return flat.reshape(container.shape)
