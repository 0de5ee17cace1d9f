"""The cases of the golden net: sources of every family and format, and the targets that they are planned for.

Sources are the checkpoints of tests/data and those of sources.tar.xz (`make_sources.py`), as they are and with single
configuration keys changed. Nothing here reads tensor data.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from support.hf_models import as_transformers4

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
# archives of checkpoints: where they lie, and the group whose name their cases begin with
ARCHIVES = (
    ("megatron", "checkpoints/*.tar.xz"),
    ("megatron", "families/*.tar.xz"),
    ("trtllm", "trtllm/*.tar.xz"),
    ("ggml", "ggml/*.tar.xz"),
)
TARGETS: dict[str, dict[str, Any]] = {
    "hf-f32": {"to": "hf", "dtype": "float32"},
    "hf-fp8": {"to": "hf", "quantize": "fp8"},
    "gguf-f16": {"to": "gguf", "dtype": "float16"},
    "gguf-q8_0": {"to": "gguf", "quantize": "q8_0"},
    "gguf-q4_k_m": {"to": "gguf", "quantize": "q4_k_m"},
    "trtllm": {"to": "trtllm", "dtype": "float16"},
    "trtllm-tp2pp2": {"to": "trtllm", "tp": 2, "pp": 2},
}
# a configuration key that changes what is written changes it for these
PLAIN = {name: TARGETS[name] for name in ("hf-f32", "gguf-f16", "trtllm")}
FP8: dict[str, dict[str, Any]] = {
    "hf-fp8_static": {"to": "hf", "quantize": "fp8_static"},
    "trtllm-fp8": {"to": "trtllm", "quantize": "fp8"},
}
OF_TRAINING: dict[str, dict[str, Any]] = {
    "gguf-lora": {"to": "gguf-lora"},
    "peft": {"to": "peft"},
    "gguf-checkpoint": {"to": "gguf-checkpoint"},
}
UNNAMED = ("falcon", "gemma", "gemma2")
ABSENT = "(absent)"
LLAMA, DEEPSEEK, MIXTRAL, NEMOTRON = (
    "megatron/llama-v019-dist-tp2pp2-bf16",
    "megatron/deepseek-v019-dist-tp2pp2-fp32",
    "megatron/mixtral-v019-dist-tp2ep2pp2-bf16",
    "megatron/nemotron-v016-dist-tp2-onep-fp32",
)
_YARN = {
    "position_embedding_type": "yarn", "rotary_scaling_factor": 4.0, "yarn_original_max_position_embeddings": None,
    "yarn_beta_fast": None, "yarn_beta_slow": None, "mscale": 1.0, "mscale_all_dim": 0.0,
}  # fmt: skip
_SCALING = {"rope_type": "yarn", "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32}}
# a source -> name of a variant -> configuration keys as its format has them, changed in place of the stored ones
CHANGED: dict[str, dict[str, dict[str, Any]]] = {
    LLAMA: {
        "rope-linear": {"rotary_seq_len_interpolation_factor": 4, "tensor_parallel_num_weight_shards": 1},
        "rope-linear-without-effect": {"rotary_seq_len_interpolation_factor": 4},
        "rope-llama3": {"use_rope_scaling": True, "rope_scaling_factor": 8.0},
        "rope-yarn": _YARN,
        "rope-yarn-window": _YARN | {"window_size": [7, 0]},
        "rope-half": {"rotary_percent": 0.5},
        "rope-interleaved": {"rotary_interleaved": True},
        "rope-none": {"position_embedding_type": "none"},
        "learned": {"position_embedding_type": "learned_absolute"},
        "window": {"window_size": [7, 0]},
        "window-pattern": {"window_size": [7, 0], "window_attn_skip_freq": 2},
        "biases": {"add_bias_linear": True, "add_qkv_bias": True},
        "qkv-bias": {"add_qkv_bias": True},
        "qk-norm": {"qk_layernorm": True},
        "tied": {"untie_embeddings_and_output_weights": False},
        "experts": {"num_experts": 4, "moe_router_topk": 2},
        "layer-norm": {"normalization": "LayerNorm"},
        "zero-centred": {"apply_layernorm_1p": True},
        "quick-geglu": {"swiglu": False, "quick_geglu": True},
        "relu2": {"swiglu": False, "squared_relu": True},
        "gelu": {"swiglu": False},
        "gelu-tanh": {"swiglu": False, "openai_gelu": True},
        "all-heads": {"group_query_attention": False},
        "no-groups": {"num_query_groups": None},
        "no-kv-channels": {"kv_channels": ABSENT},
        "no-epsilon": {"norm_epsilon": ABSENT},
        "no-gqa-key": {"group_query_attention": ABSENT, "num_query_groups": ABSENT},
        "no-new-keys": {"multi_latent_attention": ABSENT, "qk_layernorm": ABSENT, "add_qkv_bias": ABSENT},
        "no-vocab-size": {"vocab_size": ABSENT},
        "unknown-norm-key": {"new_norm_of_next_year": 3},
        "unknown-key": {"colour_of_the_logs": 3},
        "multiplier": {"scale_embeddings": True},
        "softmax-off-by-one": {"softmax_type": "off-by-one"},
        "mtp": {"mtp_num_layers": 1},
        "hybrid": {"hybrid_override_pattern": "M-M*"},
    },
    DEEPSEEK: {
        "yarn": {"rope_type": "yarn", "rotary_scaling_factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        "rope": {"rope_type": "rope", "rotary_scaling_factor": 1.0},
        "softmax": {"moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False,
                    "moe_router_pre_softmax": True},
        "softmax-after": {"moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False,
                          "moe_router_pre_softmax": False},
        "groups": {"moe_router_num_groups": 2, "moe_router_group_topk": 1},
        "sinkhorn": {"moe_router_load_balancing_type": "sinkhorn"},
        "scaling": {"moe_router_topk_scaling_factor": None},
        "no-shared-experts": {"moe_shared_expert_intermediate_size": None},
        "no-q-lora": {"q_lora_rank": None},
        "no-norms": {"qk_layernorm": False},
        "every-layer": {"moe_layer_freq": 1},
    },
    MIXTRAL: {
        "every-second": {"moe_layer_freq": 2},
        "listed": {"moe_layer_freq": [0, 1, 1, 1]},
        "pre-softmax": {"moe_router_pre_softmax": True},
        "sigmoid": {"moe_router_score_function": "sigmoid"},
        "qk-norm": {"qk_layernorm": True},
        "qkv-bias": {"add_qkv_bias": True},
        "no-expert-width": {"moe_ffn_hidden_size": None},
    },
    NEMOTRON: {
        "gated": {"swiglu": True},
        "biases": {"add_bias_linear": True},
        "plain-norm": {"apply_layernorm_1p": False},
        "whole-rope": {"rotary_percent": 1.0},
        "wide-heads": {"kv_channels": 16},
    },
    "megatron/gpt2-v019-dist-tp2-fp32": {
        "tanh": {"openai_gelu": True, "bias_gelu_fusion": False},
        "rope": {"position_embedding_type": "rope"},
        "window": {"window_size": [7, 0]},
        "untied": {"untie_embeddings_and_output_weights": True},
    },
    "hf/llama": {
        "dynamic": {"rope_type": "dynamic", "rope_scaling": {"factor": 2.0}},
        "longrope": {"rope_type": "longrope", "rope_scaling": {"long_factor": [1.0], "short_factor": [1.0]}},
        "yarn": _SCALING,
        "bias-without-tensors": {"attention_bias": True},
        "gelu": {"hidden_act": "gelu"},
        "window": {"sliding_window": 7},
        "tied": {"tie_word_embeddings": True},
        "no-kv-heads": {"num_key_value_heads": ABSENT},
        "no-theta": {"rope_theta": ABSENT, "rope_type": ABSENT, "rope_scaling": ABSENT},
        "pretraining-tp": {"pretraining_tp": 2},
        "unknown-model": {"model_type": "lama", "architectures": ["LamaForCausalLM"]},
        "unknown-key": {"residual_multiplier": 0.22},
        "two-ends": {"eos_token_id": [2, 5], "pad_token_id": 0},
        "other-head-dim": {"head_dim": 12},
    },
    "hf/mistral": {"no-window": {"sliding_window": None}, "yarn": _SCALING},
    "hf/qwen2": {
        "window": {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1, "layer_types": ABSENT},
        "types": {"use_sliding_window": True, "sliding_window": 40,
                  "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    },
    "hf/qwen3": {
        "window": {"use_sliding_window": True, "sliding_window": 40, "layer_types": ["sliding_attention"] * 3},
    },
    "hf/qwen3_moe": {
        "not-normalised": {"norm_topk_prob": False},
        "shared": {"shared_expert_intermediate_size": 96},
    },
    "hf/mixtral": {"yarn": _SCALING, "jitter": {"router_jitter_noise": 0.1}},
    "hf/gpt2": {
        "window": {"sliding_window": 7},
        "scaled": {"scale_attn_by_inverse_layer_idx": True},
        "exact": {"activation_function": "gelu"},
        "unscaled": {"scale_attn_weights": False},
    },
    "hf/starcoder": {"window": {"sliding_window": 7}, "exact": {"activation_function": "gelu"}},
    "hf/starcoder2": {"tanh": {"hidden_act": "gelu"}, "no-window": {"sliding_window": None}},
    "hf/stablelm": {"qk-norm": {"qk_layernorm": True}, "whole-rope": {"partial_rotary_factor": 1.0}},
    "hf/gpt_neox": {"tanh": {"hidden_act": "gelu_new"}, "rotary-pct": {"rotary_pct": 0.25}},
    "hf/gemma": {
        "exact": {"hidden_act": "gelu"},
        "activation": {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        "window": {"sliding_window": 7},
    },
    "hf/gemma2": {
        "no-caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "other-types": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "no-types": {"layer_types": ABSENT},
    },
    "hf/nemotron": {"silu": {"hidden_act": "silu"}, "quarter-rope": {"partial_rotary_factor": 0.25}},
    "hf/falcon": {
        "alibi": {"alibi": True},
        "relu": {"activation": "relu"},
        "sequential": {"parallel_attn": False},
    },
    "hf/deepseek_v2": {
        "normalised": {"norm_topk_prob": True},
        "groups": {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
        "sigmoid": {"scoring_func": "sigmoid"},
    },
    "hf/deepseek_v3": {
        "softmax": {"scoring_func": "softmax"},
        "greedy": {"topk_method": "greedy"},
        "layer-freq": {"moe_layer_freq": 2},
        "not-normalised": {"norm_topk_prob": False},
        "dense-first": {"first_k_dense_replace": 0},
        "mtp": {"num_nextn_predict_layers": 1},
        "paired-rope": {"rope_interleave": False},
    },
    "gguf/llama": {
        "linear": {"rope_scaling_type": "linear", "rope_scaling_factor": 4.0},
        "old-linear": {"rope_scale_linear": 4.0},
        "yarn": {"rope_scaling_type": "yarn", "rope_scaling_factor": 4.0, "rope_scaling_original_context_length": 32},
        "no-kv-heads": {"attention_head_count_kv": ABSENT},
        "no-head-dim": {"attention_key_length": ABSENT, "attention_value_length": ABSENT},
        "no-theta": {"rope_freq_base": ABSENT},
        "window": {"attention_sliding_window": 7},
        "unknown-scale": {"attention_scale_of_next_year": 2.0},
        "other-architecture": {"general_architecture": "lama"},
    },
    "gguf/gpt2": {"window": {"attention_sliding_window": 7}},
    "gguf/gemma2": {"no-caps": {"attn_logit_softcapping": ABSENT, "final_logit_softcapping": ABSENT}},
    "gguf/deepseek_v3": {
        "softmax": {"expert_gating_func": 1},
        "no-gating": {"expert_gating_func": ABSENT},
        "not-normalised": {"expert_weights_norm": False},
        "no-scale": {"expert_weights_scale": ABSENT},
    },
    "gguf/qwen3_moe": {"normalised": {"expert_weights_norm": True}},
    "trtllm/llama_gqa_tp2_pp2": {
        "linear": {"rotary_scaling": {"type": "linear", "factor": 4.0}},
        "gelu": {"hidden_act": "gelu"},
        "no-kv-heads": {"num_key_value_heads": ABSENT},
    },
}  # fmt: skip


# stored tensors that a variant lacks, as globs
WITHOUT = {f"{DEEPSEEK}+softmax": "*expert_bias", f"{DEEPSEEK}+softmax-after": "*expert_bias"}
# a GGUF holds the divisors of Llama 3.1's rope, not the numbers that they follow from
SET = {
    "gguf/llama3": {
        "rope_scaling": '{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, '
        '"original_max_position_embeddings": 32}'
    }
}
BASES = {"ggml/l1-adam.ggcl": "base96.gguf", "ggml/l3-lbfgs.ggcl": "base96.gguf"}


@dataclass(frozen=True)
class Case:
    """A source to open, and the targets that it is planned for.

    family   what `--family` says; settings: what `--set` says; base: what `--base` says
    changed  configuration keys with other values, or ABSENT; without: glob over stored tensors that are not there
    like     the case whose stored configuration is the same but for `changed`
    """

    path: Path
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PLAIN)
    family: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    base: Path | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)
    without: str = ""
    like: str = ""


def unpacked(folder: Path) -> dict[str, Case]:
    """Unpack every archive below `folder`; the cases by name."""
    for group, pattern in ARCHIVES:
        for file in sorted(DATA.glob(pattern)):
            _extract(file, folder if group == "ggml" else folder / group)
    _extract(HERE / "sources.tar.xz", folder)
    return dict(_cases(folder))


def _extract(file: Path, folder: Path) -> None:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


def _cases(folder: Path) -> Iterator[tuple[str, Case]]:
    yield "megatron/tiny-kjv", Case(HERE.parents[1] / "examples/tiny-kjv", TARGETS)
    for path in [path for group in ("gguf", "hf", "megatron", "trtllm") for path in sorted((folder / group).iterdir())]:
        name = f"{path.relative_to(folder).parts[0]}/{path.name.removesuffix('.gguf')}"
        family = name.partition("/")[2].partition("-")[0]
        # Megatron's args have no words for these families
        named = family if path.parent.name == "megatron" and family in UNNAMED else None
        case = Case(path, _targets(path), named)
        yield name, case
        for variant, changed in CHANGED.get(name, {}).items():
            full = f"{name}+{variant}"
            yield full, replace(case, targets=PLAIN, changed=changed, without=WITHOUT.get(full, ""), like=name)
        if name in SET:
            yield f"{name}+set", replace(case, settings=SET[name])
        if path.parent.name == "hf":
            yield f"hf-v4/{path.name}", Case(_older(path, folder / "hf-v4"), {})
    for path in sorted([*folder.glob("ggml/gg*/*.gg*"), *folder.glob("ggml/generated/*.gg*")]):
        name = f"ggml/{path.name}"
        yield name, Case(path, PLAIN | OF_TRAINING)
        if name in BASES:
            yield f"{name}+base", Case(path, base=folder / "ggml/support" / BASES[name])


def _targets(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """All for Hugging Face folders and real Megatron checkpoints; for others what shows how they are read."""
    real = any((DATA / kind / f"{path.name}.tar.xz").exists() for kind in ("checkpoints", "families"))
    if path.parent.name == "trtllm":
        return PLAIN | FP8
    return TARGETS if path.parent.name == "hf" or real else PLAIN


def _older(model: Path, folder: Path) -> Path:
    """A copy of a Hugging Face folder whose config.json is as transformers 4 would have written it."""
    copy = folder / model.name
    copy.mkdir(parents=True)
    for file in model.iterdir():
        if file.name == "config.json":
            (copy / file.name).write_bytes(file.read_bytes())
        else:
            (copy / file.name).hardlink_to(file)
    return as_transformers4(copy)
