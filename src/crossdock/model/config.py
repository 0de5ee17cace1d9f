"""The canonical configuration: what a decoder is, in one vocabulary, wherever it came from.

Names are Hugging Face's where it has one, since those are the field's. Every format maps its own keys onto these
fields by data (`data/layouts/*.toml`, `data/families/*.toml`); nothing else in crossdock reads a format's own keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Sizes are in elements, epsilons and factors as the formulas use them.

    Attention has `num_attention_heads` query heads of `head_dim` over `num_key_value_heads` key and value heads;
    with `kv_lora_rank` set it is multi-head latent attention. Layers in `moe_layers` have `num_experts` experts of
    `moe_intermediate_size`, the others one MLP of `intermediate_size`.
    """

    family: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float

    hidden_act: str = "silu"  # silu | gelu (exact) | gelu_tanh | relu | relu2
    mlp_gated: bool = True
    norm: str = "rms"  # rms | layer
    norm_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False

    parallel_attn: bool = False  # attention and MLP side by side: both are added to what came into the layer
    num_ln_in_parallel_attn: int = 2  # 1: the MLP has the norm of attention
    post_norms: bool = False  # a norm behind attention and one behind the MLP, besides those before them
    scale_embedding: bool = False  # embeddings are multiplied by the root of hidden_size
    query_pre_attn_scalar: float | None = None  # scores are divided by its root, not by that of head_dim
    attn_logit_softcapping: float | None = None  # scores become cap * tanh(scores / cap)
    final_logit_softcapping: float | None = None  # so do the logits

    position_embedding: str = "rope"  # rope | learned
    rope_theta: float = 10000.0
    rope_type: str = "default"  # default | linear | llama3 | yarn
    rope_scaling: Mapping[str, float] = field(default_factory=dict)  # factor, low_freq_factor, ...
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()  # empty: all layers alike

    # where layers differ; empty: they do not. 0 KV heads: no attention; width 0: no MLP
    num_key_value_heads_per_layer: tuple[int, ...] = ()
    intermediate_size_per_layer: tuple[int, ...] = ()
    linear_attention_layers: tuple[int, ...] = ()  # one matrix instead of attention
    linear_mlp_layers: tuple[int, ...] = ()  # one matrix instead of the MLP

    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0  # width of all shared experts together
    moe_layers: tuple[int, ...] = ()
    router_scoring: str = "softmax"  # softmax | sigmoid
    router_bias: bool = False  # a bias that takes part in choosing experts, not in weighting them
    norm_topk_prob: bool = True  # the chosen experts' weights sum to one
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1

    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    lora_ranks: Mapping[str, float] = field(default_factory=dict)  # of an adapter's pairs; empty: no adapter

    dtype: str = "float32"  # of the source's large tensors
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def kv_heads(self, layer: int) -> int:
        """KV heads of `layer`; 0 where it has no attention, or a matrix instead."""
        own = self.num_key_value_heads_per_layer
        return own[layer] if own else self.num_key_value_heads

    def has_attention(self, layer: int) -> bool:
        """Whether `layer` has attention, or a matrix in its place."""
        return self.kv_heads(layer) > 0 or layer in self.linear_attention_layers

    def has_mlp(self, layer: int) -> bool:
        """Whether `layer` has an MLP, or a matrix in its place."""
        widths = self.intermediate_size_per_layer
        return not widths or widths[layer] > 0 or layer in self.linear_mlp_layers

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, in order; mappings as plain dicts."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


FIELDS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(ModelConfig))
REQUIRED: tuple[str, ...] = tuple(
    f.name
    for f in dataclasses.fields(ModelConfig)
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
)
DEFAULTS: Mapping[str, Any] = {
    f.name: f.default if f.default is not dataclasses.MISSING else {}  # mappings start empty
    for f in dataclasses.fields(ModelConfig)
    if f.name not in REQUIRED
}


# Families are closed by default: a field that a family does not name must have its default, except these two kinds.
# Free fields have any value in every family, for the reason that is given.
FREE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(REQUIRED, "a size, or another number without which there is no model")
    | {
        "rope_theta": "a number in the formula of rope_type, which families name",
        "rope_scaling": "the numbers of rope_type, which families name",
        "num_experts_per_tok": "a size, in families that name num_experts",
        "moe_intermediate_size": "a size, in families that name num_experts",
        "topk_group": "a size, in families that name n_group",
        "q_lora_rank": "a size, in families that name kv_lora_rank",
        "qk_nope_head_dim": "a size, in families that name kv_lora_rank",
        "qk_rope_head_dim": "a size, in families that name kv_lora_rank",
        "v_head_dim": "a size, in families that name kv_lora_rank",
        "dtype": "how values are stored, not what is computed with them",
        "bos_token_id": "the tokenizer's",
        "eos_token_id": "the tokenizer's",
        "pad_token_id": "the tokenizer's",
    }
)
# Idle fields take no part in the computation where the condition over the other fields holds.
IDLE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("rope_type", "partial_rotary_factor"), "position_embedding != 'rope'")
    | dict.fromkeys(
        ("shared_expert_intermediate_size", "router_scoring", "router_bias", "norm_topk_prob", "routed_scaling_factor",
         "n_group"),
        "num_experts == 0",
    )
)  # fmt: skip


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration together with where each of its fields came from.

    config   the canonical configuration
    origins  field name -> text such as "args.hidden_size in common.pt", "--set", "default"
    ignored  source key -> reason, for keys that do not change the computation
    notices  sentences about values that had to come from a second-best place
    """

    config: ModelConfig
    origins: Mapping[str, str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
