"""Args as Megatron's own parser stores them for many kinds of models: their family, or who refuses them and why.

What Megatron computes for each was held against transformers, llama.cpp and the reference forward (0.16.1, 0.19.2).
"""

from __future__ import annotations

from typing import Any

import pytest
from planning_args import ARGS, described, refused

from crossdock.errors import ConfigError
from crossdock.layout.rules import layout
from crossdock.model.families import family

MOE = {"num_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 96, "moe_router_score_function": "softmax"}
MLA = MOE | {
    "multi_latent_attention": True, "qk_layernorm": True, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8, "v_head_dim": 16, "rope_type": "rope", "rotary_scaling_factor": 1.0,
    "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True, "moe_layer_freq": [0, 1],
}  # fmt: skip
MLA_SOFTMAX = MLA | {
    "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False, "moe_router_pre_softmax": True,
    "moe_shared_expert_intermediate_size": 96,
}  # fmt: skip
YARN = {
    "position_embedding_type": "yarn", "rotary_scaling_factor": 4.0, "yarn_original_max_position_embeddings": None,
    "yarn_beta_fast": None, "yarn_beta_slow": None, "mscale": 1.0, "mscale_all_dim": 0.0,
    "multi_latent_attention": False, "use_rope_scaling": False, "rotary_seq_len_interpolation_factor": None,
}  # fmt: skip
RELU2 = {
    "swiglu": False,
    "squared_relu": True,
    "bias_gelu_fusion": False,
    "normalization": "LayerNorm",
    "rotary_percent": 0.5,
}
KINDS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    # without --disable-bias-linear the parser turns add_qkv_bias on as well
    "biases in every matrix": (
        {"add_bias_linear": True, "add_qkv_bias": True},
        "llama",
        {"qkv_bias": True, "attn_out_bias": True, "mlp_bias": True},
    ),
    "biases on q, k and v": (
        {"add_bias_linear": False, "add_qkv_bias": True},
        "qwen2",
        {"qkv_bias": True, "attn_out_bias": False},
    ),
    "yarn on plain heads": (YARN, "llama", {"rope_type": "yarn", "position_embedding": "rope"}),
    "yarn with biases": (YARN | {"add_qkv_bias": True}, "qwen2", {"rope_type": "yarn"}),
    "yarn in a window": (YARN | {"window_size": [7, 0]}, "mistral", {"sliding_window": 8, "rope_type": "yarn"}),
    "experts in some layers": (MOE | {"moe_layer_freq": 2}, "mixtral", {"moe_layers": (0,), "intermediate_size": 160}),
    "latent attention": (MLA, "deepseek_v3", {"moe_layers": (1,), "rope_type": "default"}),
    "latent attention, softmax": (MLA_SOFTMAX, "deepseek_v2", {"router_scoring": "softmax", "norm_topk_prob": False}),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another gate": ({"swiglu": False, "quick_geglu": True}, "quick_geglu = True changes the model"),
    "latent vectors without norms": (MLA | {"qk_layernorm": False}, "qk_layernorm = False changes the model"),
    "experts with biases": (MOE | {"add_bias_linear": True, "add_qkv_bias": True}, "family mixtral does not fit"),
    "experts with biases on q, k and v": (MOE | {"add_qkv_bias": True}, "family mixtral does not fit"),
}
UNFIT: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "dense layers between experts": (MOE | {"moe_layer_freq": 2}, ("hf", "gguf", "trtllm"), "experts in every layer"),
    "no shared experts": (MLA, ("gguf",), "has shared experts"),
    "softmax after choosing": (
        MLA_SOFTMAX | {"moe_router_pre_softmax": False},
        ("hf",),
        "does not normalise the chosen",
    ),
    "wide heads with squared relu": (RELU2 | {"kv_channels": 16}, ("gguf",), "hidden_size / num_attention_heads"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_follows_from_the_args(kind: str) -> None:
    changes, name, expected = KINDS[kind]
    config, _ = described(ARGS | changes)
    assert config.family == name
    assert {field: getattr(config, field) for field in expected} == expected


def test_yarn_has_the_defaults_of_the_parser() -> None:
    config, _ = described(ARGS | YARN)
    expected = {"factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
    assert {name: config.rope_scaling[name] for name in expected} == expected


@pytest.mark.parametrize("lacking", sorted(YARN.keys() - {"position_embedding_type"}))
def test_yarn_is_never_taken_for_plain_rope(lacking: str) -> None:
    args = {key: value for key, value in (ARGS | YARN).items() if key != lacking}
    try:
        config, _ = described(args)
    except ConfigError:
        return
    assert config.rope_type == "yarn"
    assert config.rope_scaling["factor"] == 4.0


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_names_the_argument(kind: str) -> None:
    changes, sentence = REFUSED[kind]
    whats = [problem.what for problem in refused(ARGS | changes).problems]
    assert any(what.startswith(sentence) for what in whats), whats


def test_no_family_says_every_argument_that_chooses_one() -> None:
    error = refused(ARGS | {"position_embedding_type": "none", "add_qkv_bias": False, "rotary_percent": 0.5})
    assert "position_embedding_type='none'" in error.problems[0].got
    assert "rotary_percent=0.5" in error.problems[0].got
    assert "add_bias_linear=False" in error.problems[0].got


@pytest.mark.parametrize("kind", UNFIT)
def test_a_target_that_cannot_hold_the_model_says_so(kind: str) -> None:
    changes, targets, sentence = UNFIT[kind]
    config, _ = described(ARGS | changes)
    for target in ("hf", "gguf", "trtllm"):
        unmet = [
            need.sentence
            for need in layout(target, family(config.family)).writing.needs
            if not need.condition.evaluate(config.as_dict())
        ]
        assert any(sentence in what for what in unmet) == (target in targets), (target, unmet)
