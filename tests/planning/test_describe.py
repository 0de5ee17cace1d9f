"""From a format's keys to the configuration: origins, what is missing, wrong, unknown or refused."""

from __future__ import annotations

from typing import Any

import pytest
from planning_args import ARGS, described, refused, source_of, without

from crossdock.errors import UsageError
from crossdock.model.config import FIELDS
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides


def test_every_field_has_an_origin() -> None:
    config, origins = described(ARGS, settings={"norm_eps": "1e-6", "rotary_base": "10000"})
    assert set(origins) == set(FIELDS)
    assert origins["family"] == "derived from args of common.pt"
    assert origins["hidden_size"] == "hidden_size in args of common.pt"
    assert (
        origins["num_key_value_heads"]
        == "group_query_attention, num_attention_heads, num_query_groups in args of common.pt"
    )
    assert origins["norm_eps"] == "--set"
    assert origins["rope_theta"] == "--set rotary_base"
    assert origins["kv_lora_rank"] == "default"
    assert (config.norm_eps, config.rope_theta, config.num_key_value_heads) == (1e-6, 10000.0, 2)


def test_a_default_that_matters_is_shown_as_one() -> None:
    config, origins = described(without("rotary_base"))
    assert (config.rope_theta, origins["rope_theta"]) == (10000.0, "default")


def test_all_that_is_missing_is_listed_at_once() -> None:
    error = refused(without("num_layers", "norm_epsilon", "vocab_size", "padded_vocab_size"))
    whats = [problem.what for problem in error.problems]
    assert whats == [
        "num_hidden_layers could not be determined",
        "vocab_size could not be determined",
        "norm_eps could not be determined",
    ]
    for problem, name in zip(error.problems, ("num_hidden_layers", "vocab_size", "norm_eps"), strict=True):
        assert problem.where == "args of common.pt"
        assert problem.fix == f"--set {name}=VALUE, or --config with the model's Hugging Face config.json"
    assert error.problems[2].expected == "layernorm_epsilon or norm_epsilon"


def test_settings_in_canonical_and_in_native_names() -> None:
    for settings in ({"num_hidden_layers": "3"}, {"num_layers": "3"}):
        assert described(ARGS, settings=settings)[0].num_hidden_layers == 3
    assert described(ARGS, settings={"sliding_window": "none"})[0].sliding_window is None
    assert described(ARGS, settings={"add_qkv_bias": "true", "num_query_groups": "4"})[0].family == "qwen2"


def test_an_unknown_setting_names_its_neighbours() -> None:
    error = refused(ARGS, UsageError, settings={"rotary_bas": "1", "zzz": "1", "num_hidden_layer": "1"})
    assert [problem.what for problem in error.problems] == [
        "--set rotary_bas: unknown field", "--set zzz: unknown field", "--set num_hidden_layer: unknown field",
    ]  # fmt: skip
    assert error.problems[0].expected.startswith("rotary_base")
    assert error.problems[1].expected == "a field that inspect shows"
    assert error.problems[2].expected.startswith("num_hidden_layers")


WRONG = [
    ({"hidden_size": "64"}, "hidden_size", "a whole number", "it is from hidden_size in args of common.pt"),
    ({"hidden_size": 64.5}, "hidden_size", "a whole number", "it is from hidden_size in args of common.pt"),
    ({"num_layers": True}, "num_hidden_layers", "a whole number", "it is from num_layers in args of common.pt"),
    ({"norm_epsilon": "small"}, "norm_eps", "a number", "it is from norm_epsilon in args of common.pt"),
    ({"rotary_base": [1]}, "rope_theta", "a number", "it is from rotary_base in args of common.pt"),
]


@pytest.mark.parametrize(("change", "where", "expected", "cause"), WRONG, ids=[str(w[0]) for w in WRONG])
def test_a_wrong_kind_of_value(change: dict[str, Any], where: str, expected: str, cause: str) -> None:
    error = refused(ARGS | change)
    found = [problem for problem in error.problems if problem.where == where]
    assert [(p.what, p.expected, p.cause) for p in found] == [("wrong kind of value", expected, cause)]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"moe_layers": "(0, 'a')"}, "moe_layers"),
        ({"rope_scaling": "5"}, "rope_scaling"),
        ({"rope_scaling": "{'factor': 'x'}"}, "rope_scaling"),
        ({"eos_token_id": "'end'"}, "eos_token_id"),
        ({"tie_word_embeddings": "maybe"}, "tie_word_embeddings"),
        ({"sliding_window": "wide"}, "sliding_window"),
    ],
    ids=str,
)
def test_a_wrong_setting(settings: dict[str, str], where: str) -> None:
    error = refused(ARGS, settings=settings)
    assert [(p.what, p.where, p.cause) for p in error.problems] == [("wrong kind of value", where, "it is from --set")]


IMPOSSIBLE = [
    ({"hidden_size": 0}, "implausible size"),
    ({"hidden_size": -8}, "implausible size"),
    ({"hidden_size": 1 << 60}, "implausible size"),
    ({"num_layers": 10**9}, "implausibly many layers"),
    ({"num_query_groups": 3}, "query heads are not a multiple of KV heads"),
    ({"norm_epsilon": float("nan")}, "implausible number"),
    ({"rotary_base": 0}, "the base of rope is missing"),
    ({"num_experts": 4, "moe_router_topk": 0}, "num_experts_per_tok is out of range"),
    ({"num_experts": 4, "moe_router_topk": 5}, "num_experts_per_tok is out of range"),
]


@pytest.mark.parametrize(("change", "what"), IMPOSSIBLE, ids=[str(c) for c, _ in IMPOSSIBLE])
def test_sizes_that_no_model_has(change: dict[str, Any], what: str) -> None:
    assert what in [problem.what for problem in refused(ARGS | change).problems]


def test_llama3_scaling_by_megatrons_flag() -> None:
    config, origins = described(ARGS | {"use_rope_scaling": True, "rope_scaling_factor": 4.0})
    assert config.rope_type == "llama3"
    assert config.rope_scaling["factor"] == 4.0
    assert config.rope_scaling["original_max_position_embeddings"] == 8192
    assert origins["rope_type"] == "use_rope_scaling in args of common.pt"


def test_a_telling_unknown_key_is_refused_and_a_harmless_one_listed() -> None:
    error = refused(ARGS | {"attention_sink_tokens": 4, "router_moe_noise": 0.5})
    assert [p.what for p in error.problems] == [
        "unknown key 'attention_sink_tokens' = 4 may change what the model computes",
        "unknown key 'router_moe_noise' = 0.5 may change what the model computes",
    ]
    assert "--set" not in error.problems[0].fix
    assert error.problems[0].cause == "probably another architecture than the families that crossdock knows"
    reading = describe(
        source_of(ARGS | {"colour": "blue", "attention_sink_tokens": None, "adam_beta1": 0.9}), Overrides()
    )
    assert reading.described.ignored["colour"] == "unknown; its name does not suggest that it changes the computation"
    assert reading.described.ignored["attention_sink_tokens"] == "not set"
    assert reading.described.ignored["adam_beta1"] == "optimizer"
    said = describe(
        source_of(ARGS | {"attention_sink_tokens": 4}), Overrides(settings={"attention_sink_tokens": "None"})
    )
    assert said.described.ignored["attention_sink_tokens"] == "set by --set"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("moe_mlp_glu_interleave_size", 32),
        ("moe_shared_expert_gate", True),
        ("quick_geglu", True),
        ("softmax_type", "off-by-one"),
        ("rotary_interleaved", True),
        ("no_rope_freq", 4),
        ("qk_l2_norm", True),
        ("heterogeneous_layers_config_path", "layers.json"),
    ],
)
def test_a_key_that_changes_the_model_is_refused(key: str, value: object) -> None:
    error = refused(ARGS | {key: value})
    assert len(error.problems) == 1
    assert error.problems[0].what.startswith(f"{key} = {value!r} changes the model in a way that crossdock does not")
    assert error.problems[0].where == "args of common.pt"
    assert described(ARGS | {key: None})[0] == described(ARGS)[0]


def test_the_tokenizers_size_may_be_unknown() -> None:
    """Then every stored row counts, and the user is told."""
    reading = describe(source_of(ARGS | {"vocab_size": None}), Overrides())
    assert reading.described.config.vocab_size == 256
    assert reading.described.origins["vocab_size"] == "padded_vocab_size in args of common.pt"
    assert [notice.split(":")[0] for notice in reading.described.notices] == [
        "args do not say how many tokens the tokenizer has (vocab_size)"
    ]
    said = describe(source_of(ARGS | {"vocab_size": None}), Overrides(settings={"vocab_size": "203"}))
    assert said.described.config.vocab_size == 203
    assert said.described.notices == ()
    assert describe(source_of(ARGS), Overrides()).described.notices == ()


def test_no_configuration_at_all_asks_for_one() -> None:
    error = refused({})
    assert error.problems[0].what == "the checkpoint has no configuration"
    assert "--config" in error.problems[0].fix


def test_a_model_of_no_family_says_what_was_seen() -> None:
    error = refused(without("swiglu", normalization="LayerNorm", num_experts=8))
    assert error.problems[0].what == "no supported family fits this model"
    assert "normalization='LayerNorm'" in error.problems[0].got
    assert "position_embedding_type='rope'" in error.problems[0].got
    assert "crossdock families" in error.problems[0].fix
