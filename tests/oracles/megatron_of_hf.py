"""A Hugging Face state dict as Megatron has it: names, order and args by the rules of the programs that train.

Written by hand from the bridges of Megatron-Bridge 067f987 (`models/*/*_bridge.py`, `conversion/param_mapping.py`) and
slime 624b824 (`megatron_to_hf/`, `scripts/models/`), forwards; shares nothing with crossdock. Keys are per layer,
experts are `…mlp.experts.{e}.linear_fc1.weight`, as `oracles.megatron_state.global_state` gives them, so that
`support.megatron_writers` saves them in every layout.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Array]
Config = Mapping[str, Any]

# model type -> names in its experts' part: the part, the router, its choosing bias, gate, up, down, shared experts
MOE = {
    "hy_v3": ("mlp", "router.gate.weight", "expert_bias", ("gate_proj", "up_proj", "down_proj"), "shared_mlp"),
    "minimax_m2": ("block_sparse_moe", "gate.weight", "e_score_correction_bias", ("w1", "w3", "w2"), ""),
    "mixtral": ("block_sparse_moe", "gate.weight", "", ("w1", "w3", "w2"), ""),
    "qwen2_moe": ("mlp", "gate.weight", "", ("gate_proj", "up_proj", "down_proj"), "shared_expert"),
    "qwen3_next": ("mlp", "gate.weight", "", ("gate_proj", "up_proj", "down_proj"), "shared_expert"),
    "qwen3_5_moe_text": ("mlp", "gate.weight", "", ("gate_proj", "up_proj", "down_proj"), "shared_expert"),
}
DEEPSEEK = (
    "mlp",
    "gate.weight",
    "gate.e_score_correction_bias",
    ("gate_proj", "up_proj", "down_proj"),
    "shared_experts",
)
MLA = {
    "q_a_proj.weight": "linear_q_down_proj.weight",
    "q_a_layernorm.weight": "linear_q_up_proj.layer_norm_weight",
    "q_b_proj.weight": "linear_q_up_proj.weight",
    "q_proj.weight": "linear_q_proj.weight",
    "kv_a_proj_with_mqa.weight": "linear_kv_down_proj.weight",
    "kv_a_layernorm.weight": "linear_kv_up_proj.layer_norm_weight",
    "kv_b_proj.weight": "linear_kv_up_proj.weight",
    "o_proj.weight": "linear_proj.weight",
    "indexer.wq_b.weight": "core_attention.indexer.linear_wq_b.weight",
    "indexer.wk.weight": "core_attention.indexer.linear_wk.weight",
    "indexer.k_norm.weight": "core_attention.indexer.k_norm.weight",
    "indexer.k_norm.bias": "core_attention.indexer.k_norm.bias",
    "indexer.weights_proj.weight": "core_attention.indexer.linear_weights_proj.weight",
}


def megatron_of_hf(hf: Mapping[str, Array], config: Config, **more_args: Any) -> tuple[State, Namespace]:
    """Weights under Megatron's names, and the args of the run; `more_args` stand over those.

    Layers for multi-token prediction are `mtp.layers.{i}.transformer_layer.…`, as torch_dist has them.
    """
    state: State = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
    }
    if "lm_head.weight" in hf:
        state["output_layer.weight"] = hf["lm_head.weight"]
    layers = config["num_hidden_layers"]
    for number in range(layers):
        inner = _under(hf, f"model.layers.{number}.")
        state |= {f"decoder.layers.{number}.{name}": tensor for name, tensor in _layer(inner, config)}
    for number in range(config.get("num_nextn_predict_layers") or 0):
        inner = _under(hf, f"model.layers.{layers + number}.")
        state |= {f"mtp.layers.{number}.{name}": tensor for name, tensor in _mtp(inner, config)}
    if "mtp.fc.weight" in hf:
        inner = _under(hf, "mtp.layers.0.") | {
            "enorm.weight": hf["mtp.pre_fc_norm_embedding.weight"],
            "hnorm.weight": hf["mtp.pre_fc_norm_hidden.weight"],
            "eh_proj.weight": hf["mtp.fc.weight"],
            "shared_head.norm.weight": hf["mtp.norm.weight"],
        }
        state |= {f"mtp.layers.0.{name}": tensor for name, tensor in _mtp(inner, config)}
    found = {name.split(".")[2] for name in state if name.startswith("mtp.")}
    args = args_of(config) | {"mtp_num_layers": len(found) or None} | more_args
    return state, Namespace(**args)


def _under(hf: Mapping[str, Array], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in hf.items() if name.startswith(prefix)}


def _mtp(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    yield "enorm.weight", hf["enorm.weight"]
    yield "hnorm.weight", hf["hnorm.weight"]
    yield "eh_proj.weight", hf["eh_proj.weight"]  # columns: embeddings, then hidden states, in both
    yield "final_layernorm.weight", hf["shared_head.norm.weight"]
    for name, tensor in _layer(hf, config):
        yield f"transformer_layer.{name}", tensor


def _layer(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    kind = config["model_type"]
    norm = hf["input_layernorm.weight"]
    if "linear_attn.A_log" in hf:
        yield "self_attention.in_proj.layer_norm_weight", norm
        yield from (
            (f"self_attention.{name}", tensor) for name, tensor in delta_net(_under(hf, "linear_attn."), config)
        )
    elif "kv_lora_rank" in config:
        yield "input_layernorm.weight", norm
        for name, tensor in _under(hf, "self_attn.").items():
            yield f"self_attention.{MLA[name]}", tensor
    else:
        yield "self_attention.linear_qkv.layer_norm_weight", norm
        yield from ((f"self_attention.{name}", tensor) for name, tensor in _attention(_under(hf, "self_attn."), config))
    before = "post_attention_layernorm.weight"
    if kind.startswith("gemma"):
        yield "self_attention.linear_proj.post_layernorm.weight", hf[before]
        yield "mlp.linear_fc2.post_layernorm.weight", hf["post_feedforward_layernorm.weight"]
        before = "pre_feedforward_layernorm.weight"
    part = "feed_forward" if kind == "llama4_text" else "mlp"
    if f"{part}.gate_proj.weight" in hf:
        yield "mlp.linear_fc1.layer_norm_weight", hf[before]
        yield "mlp.linear_fc1.weight", np.concatenate([hf[f"{part}.gate_proj.weight"], hf[f"{part}.up_proj.weight"]])
        yield "mlp.linear_fc2.weight", hf[f"{part}.down_proj.weight"]
        return
    yield "pre_mlp_layernorm.weight", hf[before]
    experts = {"gpt_oss": _gpt_oss_experts, "llama4_text": _llama4_experts}.get(kind, _experts)
    yield from ((f"mlp.{name}", tensor) for name, tensor in experts(hf, config))


def _attention(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = hf["k_proj.weight"].shape[0] // groups
    for kind in ("weight", "bias"):
        if f"q_proj.{kind}" not in hf:
            continue
        tail = hf[f"q_proj.{kind}"].shape[1:]
        q, k, v = (hf[f"{name}_proj.{kind}"] for name in "qkv")
        parts = [k.reshape(groups, size, *tail), v.reshape(groups, size, *tail)]
        if len(q) == 2 * heads * size:  # every head has its query, then its gate; a group its queries, then its gates
            both = q.reshape(groups, heads // groups, 2, size, *tail)
            parts = [both[:, :, turn].reshape(groups, -1, *tail) for turn in (0, 1)] + parts
        else:
            parts = [q.reshape(groups, -1, *tail), *parts]
        yield f"linear_qkv.{kind}", np.concatenate(parts, axis=1).reshape(-1, *tail)
    for name in ("q", "k"):
        if f"{name}_norm.weight" in hf:
            yield f"{name}_layernorm.weight", hf[f"{name}_norm.weight"]
    for kind in ("weight", "bias"):
        if f"o_proj.{kind}" in hf:
            yield f"linear_proj.{kind}", hf[f"o_proj.{kind}"]
    if "sinks" in hf:
        yield "core_attention.softmax_offset", hf["sinks"]


def _experts(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    part, router, bias, (gate, up, down), shared = MOE.get(config["model_type"], DEEPSEEK)
    yield "router.weight", hf[f"{part}.{router}"]
    if bias and f"{part}.{bias}" in hf:
        yield "router.expert_bias", hf[f"{part}.{bias}"]
    for expert in range(len(hf[f"{part}.{router}"])):
        one = _under(hf, f"{part}.experts.{expert}.")
        yield f"experts.{expert}.linear_fc1.weight", np.concatenate([one[f"{gate}.weight"], one[f"{up}.weight"]])
        yield f"experts.{expert}.linear_fc2.weight", one[f"{down}.weight"]
    if shared and f"{part}.{shared}.{gate}.weight" in hf:
        one = _under(hf, f"{part}.{shared}.")
        yield "shared_experts.linear_fc1.weight", np.concatenate([one[f"{gate}.weight"], one[f"{up}.weight"]])
        yield "shared_experts.linear_fc2.weight", one[f"{down}.weight"]
    if f"{part}.shared_expert_gate.weight" in hf:
        yield "shared_experts.gate_weight", hf[f"{part}.shared_expert_gate.weight"]


def _gpt_oss_experts(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    """gate_up_proj is [expert, in, out], its columns gate and up in turn; down_proj is [expert, in, out] too."""
    yield "router.weight", hf["mlp.router.weight"]
    yield "router.bias", hf["mlp.router.bias"]
    for expert in range(config["num_local_experts"]):
        gate_up, bias = hf["mlp.experts.gate_up_proj"][expert].T, hf["mlp.experts.gate_up_proj_bias"][expert]
        yield f"experts.{expert}.linear_fc1.weight", np.concatenate([gate_up[::2], gate_up[1::2]])
        yield f"experts.{expert}.linear_fc1.bias", np.concatenate([bias[::2], bias[1::2]])
        yield f"experts.{expert}.linear_fc2.weight", np.ascontiguousarray(hf["mlp.experts.down_proj"][expert].T)
        yield f"experts.{expert}.linear_fc2.bias", hf["mlp.experts.down_proj_bias"][expert]


def _llama4_experts(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    """gate_up_proj is [expert, in, out], its columns all gates, then all ups."""
    part = "feed_forward"
    yield "router.weight", hf[f"{part}.router.weight"]
    for expert in range(config["num_local_experts"]):
        yield f"experts.{expert}.linear_fc1.weight", np.ascontiguousarray(hf[f"{part}.experts.gate_up_proj"][expert].T)
        yield f"experts.{expert}.linear_fc2.weight", np.ascontiguousarray(hf[f"{part}.experts.down_proj"][expert].T)
    one = _under(hf, f"{part}.shared_expert.")
    yield "shared_experts.linear_fc1.weight", np.concatenate([one["gate_proj.weight"], one["up_proj.weight"]])
    yield "shared_experts.linear_fc2.weight", one["down_proj.weight"]


def delta_net(hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    """Gated DeltaNet in the split keys of megatron-core: `core/ssm/gated_delta_net.py`, `sharded_state_dict`."""
    heads, key_size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    repeat, value_size = config["linear_num_value_heads"] // heads, config["linear_value_head_dim"]
    keys, values = heads * key_size, heads * repeat * value_size
    if "in_proj_qkvz.weight" in hf:  # of each key head: q, k, its values, its gates
        wide = hf["in_proj_qkvz.weight"].reshape(heads, 2 * key_size + 2 * repeat * value_size, -1)
        at = [key_size, 2 * key_size, 2 * key_size + repeat * value_size]
        q, k, v, z = (part.reshape(-1, part.shape[-1]) for part in np.split(wide, at, axis=1))
        narrow = hf["in_proj_ba.weight"].reshape(heads, 2, repeat, -1)
        b, a = (narrow[:, turn].reshape(heads * repeat, -1) for turn in (0, 1))
    else:
        q, k, v = np.split(hf["in_proj_qkv.weight"], [keys, 2 * keys])
        z, b, a = hf["in_proj_z.weight"], hf["in_proj_b.weight"], hf["in_proj_a.weight"]
    assert len(v) == values
    named = {"query": q, "key": k, "value": v, "z": z, "beta": b, "alpha": a}
    yield from ((f"in_proj.weight.{name}", np.ascontiguousarray(tensor)) for name, tensor in named.items())
    conv = np.split(hf["conv1d.weight"], [keys, 2 * keys])
    yield from ((f"conv1d.weight.{name}", part) for name, part in zip(("query", "key", "value"), conv, strict=True))
    yield "A_log", hf["A_log"]
    yield "dt_bias", hf["dt_bias"]
    yield "out_norm.weight", hf["norm.weight"] - 1  # zero-centred as every norm of the model, and Hugging Face's is not
    yield "out_proj.weight", hf["out_proj.weight"]


HYBRID = {"linear_attention": "M", "full_attention": "*", "moe": "E", "mlp": "-"}


def hybrid_of_hf(hf: Mapping[str, Array], config: Config, **more_args: Any) -> tuple[State, Namespace]:
    """A NemotronH as HybridModel: `nemotron_h_bridge.py`, and MambaMixer's split keys of torch_dist."""
    state: State = {
        "embedding.word_embeddings.weight": hf["backbone.embeddings.weight"],
        "decoder.final_norm.weight": hf["backbone.norm_f.weight"],
        "output_layer.weight": hf["lm_head.weight"],
    }
    letters = [HYBRID[block] for block in config["layers_block_type"]]
    for number, letter in enumerate(letters):
        inner = _under(hf, f"backbone.layers.{number}.")
        state |= {f"decoder.layers.{number}.{name}": tensor for name, tensor in _hybrid_layer(letter, inner, config)}
    args = args_of({**config, "num_hidden_layers": len(letters), "rms_norm_eps": config["layer_norm_epsilon"]})
    args |= {
        "hybrid_layer_pattern": "".join(letters), "is_hybrid_model": True, "position_embedding_type": "none",
        "spec": ["megatron.core.models.mamba.mamba_layer_specs", "mamba_stack_spec"], "swiglu": False,
        "squared_relu": True, "mamba_num_heads": config["mamba_num_heads"], "mamba_head_dim": config["mamba_head_dim"],
        "mamba_state_dim": config["ssm_state_size"], "mamba_num_groups": config["n_groups"], "moe_layer_freq": 1,
        "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
        "moe_shared_expert_intermediate_size": config["moe_shared_expert_intermediate_size"],
    }  # fmt: skip
    return state, Namespace(**args | more_args)


def _hybrid_layer(letter: str, hf: State, config: Config) -> Iterator[tuple[str, Array]]:
    norm, mixer = hf["norm.weight"], _under(hf, "mixer.")
    if letter == "*":
        yield "self_attention.linear_qkv.layer_norm_weight", norm
        yield from ((f"self_attention.{name}", tensor) for name, tensor in _attention(mixer, config))
    elif letter == "-":
        yield "mlp.linear_fc1.layer_norm_weight", norm
        yield "mlp.linear_fc1.weight", mixer["up_proj.weight"]
        yield "mlp.linear_fc2.weight", mixer["down_proj.weight"]
    elif letter == "E":
        yield "pre_mlp_layernorm.weight", norm
        yield "mlp.router.weight", mixer["gate.weight"]
        yield "mlp.router.expert_bias", mixer["gate.e_score_correction_bias"]
        for expert in range(config["n_routed_experts"]):
            yield f"mlp.experts.{expert}.linear_fc1.weight", mixer[f"experts.{expert}.up_proj.weight"]
            yield f"mlp.experts.{expert}.linear_fc2.weight", mixer[f"experts.{expert}.down_proj.weight"]
        yield "mlp.shared_experts.linear_fc1.weight", mixer["shared_experts.up_proj.weight"]
        yield "mlp.shared_experts.linear_fc2.weight", mixer["shared_experts.down_proj.weight"]
    else:
        inner = config["mamba_num_heads"] * config["mamba_head_dim"]
        states = config["n_groups"] * config["ssm_state_size"]
        yield "mixer.in_proj.layer_norm_weight", norm
        parts = np.split(mixer["in_proj.weight"], np.cumsum([inner, inner, states, states]))
        yield from (
            (f"mixer.in_proj.weight.{n}", part) for n, part in zip(("z", "x", "B", "C", "dt"), parts, strict=True)
        )
        for kind in ("weight", "bias"):
            parts = np.split(mixer[f"conv1d.{kind}"], np.cumsum([inner, states]))
            yield from ((f"mixer.conv1d.{kind}.{n}", part) for n, part in zip("xBC", parts, strict=True))
        for name in ("dt_bias", "A_log", "D", "norm.weight", "out_proj.weight"):
            yield f"mixer.{name}", mixer[name]


def slime_of_hf(state: State, hf: Mapping[str, Array], config: Config, args: Namespace) -> tuple[State, Namespace]:
    """`state` with the linear layers of slime's spec, whole on every rank: `slime_plugins/models/qwen3_*.py`.

    The norm before them is Qwen3NextRMSNorm, whose weights lie around zero as Hugging Face has them.
    """
    out = {name: tensor for name, tensor in state.items() if not _of_delta_net(name, state)}
    for name, tensor in hf.items():
        layer, _, inner = name.removeprefix("model.layers.").partition(".")
        if inner.startswith("linear_attn."):
            out[f"decoder.layers.{layer}.self_attention.{inner}"] = tensor
            norm = hf[f"model.layers.{layer}.input_layernorm.weight"]
            out[f"decoder.layers.{layer}.self_attention.input_layernorm.weight"] = norm
    of_core = (
        "experimental_attention_variant",
        "linear_attention_freq",
        "attention_output_gate",
        "position_embedding_type",
    )
    kind = "qwen3_next" if config["model_type"] == "qwen3_next" else "qwen3_5"
    values = {name: value for name, value in vars(args).items() if name not in of_core}
    values |= {"spec": [f"slime_plugins.models.{kind}", f"get_{kind}_spec"], "use_gated_attention": True}
    return out, Namespace(**values, position_embedding_type="rope")


def _of_delta_net(name: str, state: Mapping[str, Array]) -> bool:
    prefix, found, _ = name.partition("self_attention.")
    return bool(found) and f"{prefix}self_attention.A_log" in state


def args_of(config: Config) -> dict[str, Any]:
    """The run's args, as slime's scripts and Bridge's providers have them for such a model."""
    kind, layers = config["model_type"], config["num_hidden_layers"]
    rope = config.get("rope_parameters") or {}
    experts = config.get("n_routed_experts") or config.get("num_local_experts") or config.get("num_experts")
    sparse = config.get("mlp_layer_types") or ["dense"] * config.get("first_k_dense_replace", 0) + ["sparse"] * layers
    sparse = [
        int(i in config["moe_layers"]) if "moe_layers" in config else int(sparse[i] == "sparse") for i in range(layers)
    ]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    args: dict[str, Any] = {
        "num_layers": layers, "hidden_size": config["hidden_size"], "num_attention_heads": heads,
        "group_query_attention": groups != heads, "num_query_groups": groups if groups != heads else 1,
        "kv_channels": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn_hidden_size": config.get("intermediate_size_mlp") or config.get("intermediate_size") or 99,
        "max_position_embeddings": config["max_position_embeddings"], "vocab_size": config["vocab_size"],
        "padded_vocab_size": config["vocab_size"], "normalization": "RMSNorm",
        "layernorm_epsilon": config["rms_norm_eps"], "norm_epsilon": config["rms_norm_eps"], "swiglu": True,
        "add_bias_linear": False, "add_qkv_bias": bool(config.get("attention_bias")), "qk_layernorm": False,
        "untie_embeddings_and_output_weights": not config.get("tie_word_embeddings"), "position_embedding_type": "rope",
        "rotary_base": rope.get("rope_theta"), "rotary_percent": rope.get("partial_rotary_factor", 1.0),
        "num_experts": experts,
        "multi_latent_attention": False, "layernorm_zero_centered_gamma": False, "squared_relu": False, "fp16": False,
        "bf16": False, "expert_tensor_parallel_size": 1, "expert_model_parallel_size": 1, "spec": None,
    }  # fmt: skip
    if experts:
        wide = config.get("moe_intermediate_size") or config["intermediate_size"]
        shared = config.get("shared_expert_intermediate_size") or wide * (
            config.get("n_shared_experts") or config.get("num_shared_experts") or 0
        )
        args |= {
            "moe_ffn_hidden_size": wide, "moe_router_topk": config["num_experts_per_tok"], "moe_layer_freq": sparse,
            "moe_shared_expert_intermediate_size": shared or None, "moe_router_pre_softmax": False,
            "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False, "moe_grouped_gemm": True,
        }  # fmt: skip
    return args | _args_of_kind(kind, config, experts)


def _args_of_kind(kind: str, config: Config, experts: int | None) -> dict[str, Any]:
    """What sets this kind of model apart."""
    sigmoid = {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    scale = config.get("routed_scaling_factor") or config.get("router_scaling_factor")
    groups = {}
    if (config.get("n_group") or 1) > 1:
        groups = {"moe_router_num_groups": config["n_group"], "moe_router_group_topk": config["topk_group"]}
    if "kv_lora_rank" in config:
        latent = {
            "multi_latent_attention": True, "qk_layernorm": True, "q_lora_rank": config["q_lora_rank"],
            "kv_lora_rank": config["kv_lora_rank"], "qk_head_dim": config["qk_nope_head_dim"],
            "qk_pos_emb_head_dim": config["qk_rope_head_dim"], "v_head_dim": config["v_head_dim"], "rope_type": "rope",
            "group_query_attention": False, "num_query_groups": 1, "kv_channels": config["qk_nope_head_dim"],
        }  # fmt: skip
        if "index_topk" in config:
            latent |= {
                "experimental_attention_variant": "dsa", "dsa_indexer_n_heads": config["index_n_heads"],
                "dsa_indexer_head_dim": config["index_head_dim"], "dsa_indexer_topk": config["index_topk"],
            }  # fmt: skip
        return latent | sigmoid | groups | {"moe_router_topk_scaling_factor": scale}
    if kind in ("glm4_moe", "hy_v3"):
        norms = {"qk_layernorm": kind == "hy_v3" or bool(config.get("use_qk_norm"))}
        return sigmoid | groups | norms | {"moe_router_topk_scaling_factor": scale}
    if kind == "minimax_m2":
        return sigmoid | {"qk_layernorm": True}
    if kind == "olmoe":
        return {"qk_layernorm": True, "moe_router_pre_softmax": not config["norm_topk_prob"]}
    if kind == "gpt_oss":
        rope = config["rope_parameters"]
        return {
            "add_bias_linear": True, "swiglu": False, "quick_geglu": True, "gated_linear_unit": True,
            "glu_linear_offset": 1.0, "activation_func_clamp_value": config["swiglu_limit"],
            "softmax_type": "learnable", "window_size": [config["sliding_window"] - 1, 0], "window_attn_skip_freq": 2,
            "position_embedding_type": "yarn",
            "rotary_scaling_factor": rope["factor"], "mscale": 1.0, "mscale_all_dim": 0.0,
            "yarn_original_max_position_embeddings": rope["original_max_position_embeddings"], "yarn_beta_fast": 32.0,
            "yarn_beta_slow": 1.0, "yarn_correction_range_round_to_int": rope["truncate"],
        }  # fmt: skip
    if kind.startswith(("qwen3_next", "qwen3_5")):
        gated = {
            "layernorm_zero_centered_gamma": True, "qk_layernorm": True, "attention_output_gate": True,
            "experimental_attention_variant": "gated_delta_net",
            "linear_attention_freq": [int(t == "linear_attention") for t in config["layer_types"]],
        }  # fmt: skip
        sizes = {name: value for name, value in config.items() if name.startswith("linear_")}
        return gated | sizes | ({"moe_shared_expert_gate": True} if experts else {})
    return {}
