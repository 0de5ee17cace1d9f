"""Megatron's args: the layers of every stage, and the canonical configuration that the layout reads from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from megatron_sources import REAL, Checkpoint

from crossdock.errors import ConfigError
from crossdock.formats import megatron
from crossdock.formats.megatron.stages import layer_counts, layer_ranges
from crossdock.formats.stored import Source
from crossdock.layout.rules import layout
from crossdock.planning.config.describe import completed
from crossdock.planning.config.unknown_keys import refusals


def config_of(source: Source) -> dict[str, Any]:
    """[read] of the source's layout over args as they are: every field that has a value."""
    rules = layout(source.format)
    keys, _ = completed(rules, {**source.metadata, "tensors": frozenset(), "shapes": {}}, absent=True)
    found = {field: value.read(keys) for field, value in rules.reading.fields.items()}
    return {field: value[0] for field, value in found.items() if value is not None}


def refused(source: Source) -> list[str]:
    """The sentences of [refused] that hold for the args of `source`."""
    rules = layout(source.format)
    keys, _ = completed(rules, {**source.metadata, "tensors": frozenset(), "shapes": {}}, absent=True)
    return [problem.what for problem in refusals(rules, keys, "args")]


@pytest.mark.parametrize(
    ("args", "stages", "chunks", "expected"),
    [
        ({"num_layers": 8}, 2, 1, [(0, 4), (4, 8)]),
        ({"num_layers": 8}, 2, 2, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        ({"num_layers": 7, "decoder_first_pipeline_num_layers": 1}, 3, 1, [(0, 1), (1, 4), (4, 7)]),
        ({"num_layers": 7, "decoder_last_pipeline_num_layers": 3}, 3, 1, [(0, 2), (2, 4), (4, 7)]),
        (
            {"num_layers": 8, "decoder_first_pipeline_num_layers": 2, "decoder_last_pipeline_num_layers": 2},
            3,
            2,
            [(0, 1), (1, 3), (3, 4), (4, 5), (5, 7), (7, 8)],
        ),
        ({"num_layers": 7, "account_for_embedding_in_pipeline_split": True}, 2, 1, [(0, 3), (3, 7)]),
        (
            {
                "num_layers": 6,
                "account_for_embedding_in_pipeline_split": True,
                "account_for_loss_in_pipeline_split": True,
            },
            2,
            2,
            [(0, 1), (1, 3), (3, 5), (5, 6)],
        ),
        (
            {"num_layers": 9, "pipeline_model_parallel_layout": "Et*3|(tt|)*2,ttL"},
            4,
            1,
            [(0, 3), (3, 5), (5, 7), (7, 9)],
        ),
        (
            {
                "num_layers": 3,
                "pipeline_model_parallel_layout": [["embedding"], ["decoder", "decoder"], ["decoder"], ["loss"]],
            },
            2,
            2,
            [(0, 0), (0, 2), (2, 3), (3, 3)],
        ),
        ({"num_layers": 6, "standalone_embedding_stage": True}, 3, 1, [(0, 0), (0, 3), (3, 6)]),
        (
            {"num_layers": 5, "decoder_first_pipeline_num_layers": 2, "account_for_loss_in_pipeline_split": False},
            1,
            1,
            [(0, 5)],
        ),
    ],
)
def test_layers_of_stages(args: dict[str, Any], stages: int, chunks: int, expected: list[tuple[int, int]]) -> None:
    ranges = layer_ranges(layer_counts(args, stages, chunks, "args"), stages)
    assert list(ranges.values()) == expected
    assert list(ranges)[-1] == (("pp", stages - 1), ("vpp", chunks - 1))


@pytest.mark.parametrize(
    "args",
    [
        {"num_layers": 7},
        {"num_layers": None},
        {"num_layers": 10**9},
        {"num_layers": 4, "pipeline_model_parallel_layout": "Et|tL"},
        {"num_layers": 4, "pipeline_model_parallel_layout": "E(" + "t*9999" * 9 + ")*9999|L"},
        {"num_layers": 4, "pipeline_model_parallel_layout": "Ett|xtL"},
        {"num_layers": 2, "decoder_first_pipeline_num_layers": 5},
    ],
)
def test_layers_that_args_do_not_divide(args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        layer_counts(args, 2, 1, "args")


def test_args_of_a_real_run_are_all_understood(megatron_checkpoint: Checkpoint) -> None:
    source = megatron.open_source(megatron_checkpoint(REAL))
    assert len(source.metadata) == 852
    json.dumps(source.metadata)
    assert source.metadata["attention_backend"] == "AttnBackend(5)"
    assert source.metadata["exp_avg_dtype"] == "float32"
    rules = layout("megatron")
    refused = {
        key: source.metadata[key]
        for key, allowed in rules.reading.only_values.items()
        if source.metadata.get(key) is not None and source.metadata[key] not in allowed
    }
    assert refused == {}
    assert "0.19 or newer" in source.notes["megatron-core"]


EXPECTED: dict[str, dict[str, Any]] = {
    "gpt2-v019-dist-tp2-fp32": {
        "hidden_act": "gelu",
        "mlp_gated": False,
        "norm": "layer",
        "norm_bias": True,
        "position_embedding": "learned",
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "qkv_bias": True,
        "mlp_bias": True,
        "norm_eps": 1e-5,
    },
    "qwen2-v019-legacy-tp2-fp32": {
        "qkv_bias": True,
        "attn_out_bias": False,
        "mlp_bias": False,
        "rope_theta": 1e6,
        "norm_eps": 1e-6,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "norm": "rms",
    },
    "qwen3-v019-dist-tp2pp2-fp32": {"qk_norm": True, "head_dim": 16, "hidden_size": 64, "num_key_value_heads": 4},
    "nemotron-v016-dist-tp2-onep-fp32": {
        "hidden_act": "relu2",
        "mlp_gated": False,
        "partial_rotary_factor": 0.5,
        "norm": "layer",
        "num_key_value_heads": 2,
        "qkv_bias": False,
    },
    "mixtral-tesynth-legacy-tp2ep2pp2-fp32": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "moe_layers": (0, 1, 2, 3),
        "norm_topk_prob": True,
        "router_scoring": "softmax",
    },
    "deepseek-v019-dist-tp2pp2-fp32": {
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "moe_layers": (1, 2, 3),
        "router_scoring": "sigmoid",
        "router_bias": True,
        "routed_scaling_factor": 2.5,
        "shared_expert_intermediate_size": 96,
        "rope_type": "default",
        "norm_topk_prob": True,
        "qk_norm": False,
    },
    REAL: {"vocab_size": 250, "dtype": "bfloat16", "num_experts": 0, "moe_layers": (), "max_position_embeddings": 64},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_configuration(name: str, megatron_checkpoint: Checkpoint) -> None:
    config = config_of(megatron.open_source(megatron_checkpoint(name)))
    assert {field: config[field] for field in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"group_query_attention": False, "num_query_groups": 1}, {"num_key_value_heads": 8}),
        (
            {"use_rope_scaling": True, "rope_scaling_factor": 32.0},
            {
                "rope_type": "llama3",
                "rope_scaling": {
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
        ),
        ({"rotary_seq_len_interpolation_factor": 4}, {"rope_type": "linear", "rope_scaling": {"factor": 4.0}}),
        ({"window_size": [127, 0]}, {"sliding_window": 128}),
        ({"vocab_size": None}, {"vocab_size": 256}),
        ({"kv_channels": None, "hidden_size": 128}, {"head_dim": 16}),
        (
            {"swiglu": False, "squared_relu": False, "add_bias_linear": True, "bias_gelu_fusion": True},
            {"hidden_act": "gelu_tanh"},
        ),
        ({"multi_latent_attention": True, "rope_type": None, "rotary_scaling_factor": 40.0}, {"rope_type": "yarn"}),
        ({"num_experts": 8, "moe_layer_freq": 2}, {"moe_layers": (0, 2)}),
        ({"num_experts": 8, "moe_router_pre_softmax": True}, {"norm_topk_prob": False}),
        (
            {"num_experts": 8, "moe_router_num_groups": 4, "moe_router_group_topk": 2, "moe_router_topk": 4},
            {"n_group": 4},
        ),
    ],
)
def test_args_that_change_the_configuration(
    changes: dict[str, Any], expected: dict[str, Any], megatron_checkpoint: Checkpoint
) -> None:
    source = megatron.open_source(megatron_checkpoint(REAL))
    before = config_of(source)
    source.metadata.update(changes)  # type: ignore[attr-defined]
    after = config_of(source)
    assert {field: after.get(field) for field in expected} == expected
    assert any(before.get(field) != after.get(field) for field in expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"apply_residual_connection_post_layernorm": True, "use_legacy_models": True},
            "apply_residual_connection_post_layernorm takes the residual behind the norm",
        ),
        (
            {"multi_latent_attention": True, "rope_type": "rope", "rotary_scaling_factor": 40.0, "mscale_all_dim": 1.0},
            "attention is scaled by mscale_all_dim without yarn",
        ),
        ({"num_experts": 8, "moe_router_load_balancing_type": "sinkhorn"}, "sinkhorn replaces the scores"),
        (
            {"num_experts": 8, "moe_router_num_groups": 4, "moe_router_group_topk": 2, "moe_router_topk": 6},
            "a group of experts is scored by the sum of its best",
        ),
        (  # what cannot be computed is not taken for harmless
            {"num_experts": 8, "moe_router_num_groups": 4, "moe_router_group_topk": None, "moe_router_topk": 6},
            "a group of experts is scored by the sum of its best",
        ),
    ],
)
def test_args_that_no_field_holds_are_refused(
    changes: dict[str, Any], sentence: str, megatron_checkpoint: Checkpoint
) -> None:
    source = megatron.open_source(megatron_checkpoint(REAL))
    assert refused(source) == []
    source.metadata.update(changes)  # type: ignore[attr-defined]
    (found,) = refused(source)
    assert found.startswith(sentence)
