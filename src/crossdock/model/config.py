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

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
LAYER_TYPES = (
    *ATTENTION,
    "gated_delta_net",
    "kimi_delta_attention",
    "mamba",
    "mamba2",
    "mamba2_and_attention",  # side by side, both added
    "short_convolution",
    "none",  # only an MLP
)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Sizes are in elements, epsilons and factors as the formulas use them.

    Attention has `num_attention_heads` query heads of `head_dim` over `num_key_value_heads` key and value heads;
    with `kv_lora_rank` set it is multi-head latent attention. A layer may have another thing in its place
    (`layer_types`). Layers in `moe_layers` have `num_experts` experts of
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

    # Blocks
    hidden_act: str = "silu"  # silu | gelu (exact) | gelu_tanh | relu | relu2 | xielu
    mlp_gated: bool = True
    norm: str = "rms"  # rms | layer
    norm_bias: bool = False
    norm_weight: bool = True  # norms have a gamma
    pre_norms: bool = True  # a norm before attention (or what is in its place) and one before the MLP
    post_norms: bool = False  # a norm behind attention and one behind the MLP, besides those before them
    sub_norms: bool = False  # a norm before the last matrix of attention and one before that of the MLP
    embed_norm: bool = False  # a norm behind the embeddings
    tie_word_embeddings: bool = False
    head_bias: bool = False
    mlp_bias: bool = False
    parallel_attn: bool = False  # attention and MLP side by side: both are added to what came into the layer
    num_ln_in_parallel_attn: int = 2  # 1: the MLP has the norm of attention
    layer_scale: bool = False  # what leaves a layer is multiplied by a number of the layer
    scale_embedding: bool = False  # embeddings are multiplied by the root of hidden_size
    embedding_multiplier: float = 1.0  # embeddings are multiplied by this
    residual_multiplier: float = 1.0  # what attention and the MLP add is multiplied by this
    logit_scale: float = 1.0  # logits are multiplied by this
    logits_scaling: float = 1.0  # logits are divided by this
    final_logit_softcapping: float | None = None  # logits become cap * tanh(logits / cap)
    mlp_multipliers: tuple[float, ...] = ()  # of the gate before its activation, and of the MLP's output
    swiglu_limit: float | None = None  # the gate is at most this, the other half within -limit to limit
    swiglu_alpha: float = 1.0  # silu is x * sigmoid(alpha * x)
    swiglu_offset: float = 0.0  # is added to the half that the activated gate multiplies
    swiglu_limit_shared: bool = True  # swiglu_limit is also that of shared experts and dense MLPs
    activation_sparsity_pattern: tuple[float, ...] = ()  # share of each layer's gates that are set to 0; empty: none

    # Hyper-connections
    hc_mult: int = 0  # residual streams; 0: one, without hyper-connections
    hc_eps: float = 1e-6  # is added to the shares of the streams
    hc_magnitude: float = 2.0  # largest share of a block's output that a stream takes
    hc_sinkhorn_iters: int = 0  # streams are mixed by a matrix that is normalised so often; 0: not mixed

    high_cycles: int = 0  # the second half of the layers runs so often, each time behind low_cycles of the first
    low_cycles: int = 0

    # Attention
    qkv_bias: bool = False
    attn_out_bias: bool = False
    qk_norm: bool = False
    qk_norm_type: str = "head"  # head (one gamma for all heads) | heads (one for each) | whole (heads together) | unit
    qk_norm_bias: bool = False
    qk_norm_after_rope: bool = False
    v_norm: bool = False  # values are divided by their root mean square
    attn_gate: str = ""  # a gate on attention's output, from its input: value (each value) | head (each head) | none
    attn_gate_act: str = "sigmoid"  # sigmoid | softplus
    attn_sink_layers: tuple[int, ...] = ()  # layers in which each head has a sink, a score that has no value
    query_pre_attn_scalar: float | None = None  # scores are divided by its root, not by that of head_dim
    attention_multiplier: float | None = None  # scores are multiplied by this instead
    attn_logit_softcapping: float | None = None  # scores become cap * tanh(scores / cap)
    clip_qkv: float | None = None  # queries, keys and values lie within -clip_qkv to clip_qkv
    attn_temperature: str = ""  # queries grow with the position: llama4 (layers without rope) | ministral3 (all)
    attn_temperature_scale: float = 0.0
    attn_temperature_length: int = 0  # positions after which they grow
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    key_multiplier: float = 1.0
    attention_value_scale: float = 1.0
    sliding_window: int | None = None
    attention_chunk_size: int | None = None  # chunked layers see their own chunk of this many positions
    layer_types: tuple[str, ...] = ()  # what mixes positions in each layer, see LAYER_TYPES; empty: attention in all
    num_kv_shared_layers: int = 0  # the last layers take keys and values of the last layer of their type before them
    kv_shared_weights: bool = False  # those layers have matrices for keys and values all the same, which nothing uses
    k_eq_v_layers: tuple[int, ...] = ()  # layers without a matrix for values: they are the keys, before norm and rope

    # Positions
    position_embedding: str = "rope"  # rope | learned | alibi | none
    rope_theta: float = 10000.0
    rope_type: str = "default"  # default | linear | dynamic | llama3 | yarn | longrope | proportional
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)  # factor, low_freq_factor, ...
    partial_rotary_factor: float = 1.0
    rope_interleaved: bool | None = None  # pairs are neighbours, not two halves; None: in latent attention only
    nope_layers: tuple[int, ...] = ()  # layers whose queries and keys are not rotated
    rope_theta_per_layer: tuple[float, ...] = ()
    sliding_rope_theta: float | None = None  # sliding layers have this base and the next three; None: as all others
    sliding_rope_type: str = "default"
    sliding_rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    sliding_partial_rotary_factor: float | None = None  # None: partial_rotary_factor
    mrope_section: tuple[int, ...] = ()  # pairs that count time, height and width: all the same position in text
    mrope_interleaved: bool = False

    # Where layers differ; empty: they do not. 0 KV heads: no attention; width 0: no MLP
    num_attention_heads_per_layer: tuple[int, ...] = ()
    num_key_value_heads_per_layer: tuple[int, ...] = ()
    head_dim_per_layer: tuple[int, ...] = ()
    intermediate_size_per_layer: tuple[int, ...] = ()
    linear_attention_layers: tuple[int, ...] = ()  # one matrix instead of attention
    linear_mlp_layers: tuple[int, ...] = ()  # one matrix instead of the MLP

    # Experts
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    moe_latent_size: int = 0  # experts work in this width, between two matrices; 0: in hidden_size
    moe_layers: tuple[int, ...] = ()
    expert_bias: bool = False
    shared_expert_intermediate_size: int = 0  # width of all shared experts together
    shared_expert_gate: bool = False  # a sigmoid of the token multiplies what the shared experts give
    shared_expert_average: bool = False  # routed and shared experts are averaged, not added
    moe_beside_mlp: bool = False  # the MLP and the experts side by side, with norms of their own, and a normed router
    router_scoring: str = "softmax"  # softmax | sigmoid
    router_bias: bool = False  # a bias that takes part in choosing experts, not in weighting them
    router_logit_bias: bool = False  # a bias of the router's matrix
    router_logit_softcapping: float | None = None
    router_scales_input: bool = False  # weights multiply what comes into experts, not what they give
    norm_topk_prob: bool = True  # the chosen experts' weights sum to one
    norm_topk_eps: float = 1e-20  # is added to their sum
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    group_score: str = "top2"  # a group counts by its two best experts (top2) or by the best (max)

    # Latent attention
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0  # also of other attention, where values are not as wide as keys
    sliding_kv_lora_rank: int = 0  # sizes of layers with a sliding window; 0: as in all others
    sliding_qk_nope_head_dim: int = 0
    sliding_qk_rope_head_dim: int = 0
    sliding_v_head_dim: int = 0
    latent_rescale: bool = False  # normed latents are multiplied by the root of hidden_size over their rank
    k_rope_norm: bool = False  # a norm of the key that is rotated
    inner_norm_eps: float | None = None  # of norms inside latent attention and Mamba; None: norm_eps
    index_topk: int = 0  # a query sees this many keys, which an indexer chooses; 0: all
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_rope_interleaved: bool = False  # the indexer rotates neighbours, not two halves
    index_rope_last: bool = False  # the indexer rotates the last values of a head, not the first
    index_norm_eps: float = 1e-6  # of the indexer's layer norm
    index_shared_layers: tuple[int, ...] = ()  # layers that take the choice of the layer before them

    # Linear attention (gated_delta_net, kimi_delta_attention)
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_conv_kernel_dim: int = 0
    linear_gate_rank: int = 0  # decay and gate of kimi_delta_attention are two matrices of this rank; 0: one each
    linear_decay_bound: float | None = None  # decay's logarithm is -bound * sigmoid(...), not -exp(a) * softplus(...)

    # Mamba and short convolutions
    mamba_d_inner: int = 0
    mamba_d_state: int = 0
    mamba_d_conv: int = 0
    mamba_dt_rank: int = 0  # of mamba
    mamba_n_heads: int = 0  # of mamba2, and the next two
    mamba_d_head: int = 0
    mamba_n_groups: int = 0
    mamba_conv_bias: bool = False
    mamba_proj_bias: bool = False
    mamba_out_bias: bool = False
    mamba_inner_norms: str = ""  # norms of dt, B and C of mamba: gamma | unit (without gamma) | none
    mamba_rms_norm: bool = False  # mamba2: a gated norm in groups before the last matrix, not the gate alone
    mamba_norm_before_gate: bool = False
    time_step_limit: tuple[float, ...] = ()  # least and largest step; empty: any
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    ssm_multipliers: tuple[float, ...] = ()  # of mamba2's z, x, B, C and dt
    short_conv_kernel: int = 0
    short_conv_bias: bool = False

    # Inputs of each layer (gemma3n, gemma4)
    hidden_size_per_layer_input: int = 0
    vocab_size_per_layer_input: int = 0
    altup_num_inputs: int = 0  # copies of the residual stream; 0: one
    altup_active_idx: int = 0  # the copy that layers work on
    altup_correct_scale: bool = False
    laurel_rank: int = 0

    # Layers for multi-token prediction, behind the others: they guess tokens further on, and change no logits
    num_nextn_predict_layers: int = 0
    nextn_embed: bool = False  # they have embeddings of their own
    nextn_head: bool = False  # and a head

    # How it is stored and used
    lora_ranks: Mapping[str, float] = field(default_factory=dict)  # of an adapter's pairs; empty: no adapter

    dtype: str = "float32"  # of the source's large tensors
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def layer_type(self, layer: int) -> str:
        """What mixes positions in `layer`, one of LAYER_TYPES."""
        if self.layer_types:
            return self.layer_types[layer]
        return "full_attention" if self.sliding_window is None else "sliding_attention"

    def kv_heads(self, layer: int) -> int:
        """KV heads of `layer`; 0 where it has no attention, or a matrix instead."""
        own = self.num_key_value_heads_per_layer
        return own[layer] if own else self.num_key_value_heads

    def has_mixer(self, layer: int) -> bool:
        """Whether `layer` has attention, or something in its place."""
        kind = self.layer_type(layer)
        if kind not in ATTENTION:
            return kind != "none"
        return self.kv_heads(layer) > 0 or layer in self.linear_attention_layers

    def has_mlp(self, layer: int) -> bool:
        """Whether `layer` has an MLP, experts, or a matrix in their place."""
        width = self.intermediate_size_per_layer[layer] if self.intermediate_size_per_layer else self.intermediate_size
        return width > 0 or layer in self.moe_layers or layer in self.linear_mlp_layers

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


_SIZES_OF_OTHERS = (
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "mamba_d_inner", "mamba_d_state", "mamba_d_conv", "mamba_dt_rank", "mamba_n_heads",
    "mamba_d_head", "mamba_n_groups", "short_conv_kernel",
)  # fmt: skip

# Families are closed by default: a field that a family does not name must have its default, except these two kinds.
# Free fields have any value in every family, for the reason that is given.
FREE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(REQUIRED, "a size, or another number that every model has")
    | dict.fromkeys(_SIZES_OF_OTHERS, "a size of layers that families name in layer_types")
    | dict.fromkeys(("index_n_heads", "index_head_dim"), "a size, in families that name index_topk")
    | {
        "rope_theta": "a number in the formula of rope_type, which families name",
        "rope_scaling": "the numbers of rope_type, which families name",
        "sliding_rope_scaling": "the numbers of sliding_rope_type, which families name",
        "num_experts_per_tok": "a size, in families that name num_experts",
        "moe_intermediate_size": "a size, in families that name num_experts",
        "topk_group": "a size, in families that name n_group",
        "q_lora_rank": "a size, in families that name kv_lora_rank",
        "qk_nope_head_dim": "a size, in families that name kv_lora_rank",
        "qk_rope_head_dim": "a size, in families that name kv_lora_rank",
        "v_head_dim": "a size, in families that name kv_lora_rank",
        "sliding_qk_nope_head_dim": "a size, in families that name sliding_kv_lora_rank",
        "sliding_qk_rope_head_dim": "a size, in families that name sliding_kv_lora_rank",
        "sliding_v_head_dim": "a size, in families that name sliding_kv_lora_rank",
        "mrope_section": "text has the same position in every section",
        "mrope_interleaved": "text has the same position in every section",
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
    unproven what the user said against the checkpoint's own configuration, as sentences
    """

    config: ModelConfig
    origins: Mapping[str, str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
