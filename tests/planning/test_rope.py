"""Rope scaling reaches llama.cpp: logits beyond the original context equal transformers', or the plan is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock import delivery
from crossdock.errors import ConfigError, PlanError
from crossdock.formats.stored import Source
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits
from support import hf_models
from support.reference_logits import FLOAT32, reference_logits, relative

TOKENS = np.random.default_rng(5).integers(0, 203, (1, 90))  # the original context is 24
YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24,
}  # fmt: skip
LINEAR = hf_models.ROPE_LINEAR
LLAMA3 = hf_models.ROPE_LLAMA3 | {"original_max_position_embeddings": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-yarn": ("llama", YARN),
    "llama-yarn-betas": ("llama", YARN | {"beta_fast": 8.0, "beta_slow": 0.25}),
    "llama-yarn-attention-factor": ("llama", YARN | {"attention_factor": 1.3}),
    "llama-yarn-mscale": ("llama", YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}),
    "llama-llama3": ("llama", LLAMA3),
    "mistral-llama3": ("mistral", LLAMA3),
    "mixtral-linear": ("mixtral", LINEAR),
    "qwen2-linear": ("qwen2", LINEAR),
    "qwen2-yarn": ("qwen2", YARN),
    "qwen3-linear": ("qwen3", LINEAR),
    "qwen3-yarn": ("qwen3", YARN),
    "qwen3_moe-yarn": ("qwen3_moe", YARN),
    "deepseek-yarn": ("deepseek_v3", YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "deepseek-yarn-other-mscale": ("deepseek_v3", YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}),
    "deepseek_v2-yarn": ("deepseek_v2", YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}),
    "deepseek-yarn-no-mscale": ("deepseek_v3", YARN),
    "deepseek-yarn-attention-factor": ("deepseek_v3", YARN | {"attention_factor": 1.2, "mscale_all_dim": 0.4}),
}


@pytest.mark.parametrize("case", CASES)
def test_beyond_the_original_context(case: str, tmp_path: Path) -> None:
    """Also back: the GGUF read again means the same, for the next GGUF and for Hugging Face."""
    recipe, rope = CASES[case]
    more = {"sliding_window": None} if recipe == "mistral" else {}
    folder = hf_models.make_hf(recipe, tmp_path / "hf", rope_parameters=rope, **more)
    checkpoint = delivery.open(folder)
    plan = delivery.plan(checkpoint, "gguf", dtype="float32")
    delivery.run(plan, tmp_path / "m.gguf")
    expected, got = transformers_logits(folder, TOKENS), llama_logits(tmp_path / "m.gguf", TOKENS)
    if "betas" in case:  # llama.cpp does not read them: the plan says so, and only the reference forward agrees
        assert any("beta_fast and beta_slow" in warning for warning in plan.warnings)
        assert np.abs(got - expected).max() > 1e-2
    else:
        assert np.abs(got - expected).max() <= 1e-4
        np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
    assert relative(reference_logits(folder, TOKENS), expected) <= FLOAT32
    # the scaling matters: without it the logits are others
    if "yarn" in case:
        config = hf_models.read_config(folder)
        hf_models.write_config(folder, config | {"rope_parameters": hf_models.ROPE})
        assert np.abs(transformers_logits(folder, TOKENS) - expected).max() > 1e-2
        hf_models.write_config(folder, config)
    if recipe in ("mistral", "llama") and "llama3" in case:
        return
    again = delivery.open(tmp_path / "m.gguf", family=checkpoint.family.name)
    facts = delivery.plan(again, "gguf", dtype="float32").facts
    assert sorted(facts) == sorted(plan.facts)
    for key, value in plan.facts.items():
        assert facts[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    delivery.run(delivery.plan(again, "hf"), tmp_path / "back")
    back = transformers_logits(tmp_path / "back", TOKENS)
    assert relative(back, expected) <= FLOAT32


def test_a_gguf_with_llama3_rope_asks_for_the_config(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    delivery.run(delivery.plan(delivery.open(hf_model("llama3")), "gguf"), tmp_path / "m.gguf")
    with pytest.raises(ConfigError) as caught:
        delivery.open(tmp_path / "m.gguf")
    (problem,) = caught.value.problems
    assert problem.where == "rope_scaling"
    assert problem.what.startswith("rope of type llama3 needs factor, low_freq_factor, high_freq_factor")
    assert problem.cause == "a GGUF of llama3 rope holds only divisors, not the numbers they came from"
    assert problem.fix == "pass the model's Hugging Face config.json with --config"
    assert delivery.open(tmp_path / "m.gguf", config=hf_model("llama3")).config.rope_scaling["factor"] == 8.0


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen3-llama3": ("qwen3", LLAMA3, "family qwen3 does not fit"),
    "qwen2-llama3": ("qwen2", LLAMA3, "family qwen2 does not fit"),
    "nemotron-linear": ("nemotron", LINEAR, "family nemotron does not fit"),
    "deepseek-linear": ("deepseek_v3", LINEAR, "family deepseek_v3 does not fit"),
    "longrope": ("llama", {"rope_type": "longrope", "factor": 4.0}, "needs short_factor"),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 4.0}, "family llama does not fit"),
    "no-factor": ("llama", {"rope_type": "yarn"}, "rope of type yarn needs factor"),
    "half-llama3": ("llama", {"rope_type": "llama3", "factor": 8.0}, "rope of type llama3 needs low_freq_factor"),
    "unknown": ("llama", YARN | {"spiral": 2.0}, "unknown rope settings: spiral"),
    "shrinking": ("llama", LINEAR | {"factor": 0.5}, "rope scaling by less than 1"),
    "low-above-high": ("llama", LLAMA3 | {"low_freq_factor": 9.0}, "low_freq_factor is not below high_freq_factor"),
    "text": ("llama", LINEAR | {"factor": "4"}, "wrong kind of value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scaling_that_is_unknown_or_incomplete(case: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    recipe, rope, what = REFUSED[case]
    config = hf_models.read_config(hf_model(recipe)) | {"rope_parameters": {"rope_theta": 10000.0} | rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        delivery.open(hf_model(recipe), config=tmp_path)
    assert what in str(caught.value)


def test_an_unrounded_range_has_no_place_in_gguf(tmp_path: Path) -> None:
    folder = hf_models.make_hf("llama", tmp_path / "hf", rope_parameters=YARN | {"truncate": False})
    checkpoint = delivery.open(folder)
    with pytest.raises(PlanError, match="GGUF cannot store truncate = false"):
        delivery.plan(checkpoint, "gguf")
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "again")
    assert hf_models.read_config(tmp_path / "again")["rope_parameters"]["truncate"] is False


MEGATRON: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "group_query_attention": False, "num_query_groups": 1,
    "kv_channels": 16, "ffn_hidden_size": 160, "vocab_size": 203, "norm_epsilon": 1e-5, "max_position_embeddings": 96,
    "normalization": "RMSNorm", "swiglu": True, "position_embedding_type": "rope", "rotary_base": 10000,
    "add_bias_linear": False, "rotary_seq_len_interpolation_factor": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind", "factor"),
    [
        ({}, "default", None),
        ({"rotary_seq_len_interpolation_factor": 4, "tensor_parallel_num_weight_shards": 1}, "linear", 4.0),
        ({"rotary_seq_len_interpolation_factor": 4, "use_legacy_models": True}, "linear", 4.0),
        ({"rotary_seq_len_interpolation_factor": 4, "use_mcore_models": False}, "linear", 4.0),
        ({"rotary_seq_len_interpolation_factor": 4, "use_legacy_models": False}, "default", None),
        ({"rotary_seq_len_interpolation_factor": 4, "use_mcore_models": True}, "default", None),
        ({"rotary_seq_len_interpolation_factor": 1}, "default", None),
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, "llama3", 32.0),
        ({"use_rope_scaling": True}, "llama3", 8.0),
        ({"use_rope_scaling": False, "rope_scaling_factor": 8.0}, "default", None),
    ],
    ids=[
        "plain",
        "linear-0.19",
        "linear-legacy",
        "linear-legacy-0.4",
        "linear-0.16",
        "linear-0.6",
        "linear-by-1",
        "llama3",
        "llama3-before-the-factor",
        "llama3-off",
    ],
)
def test_megatrons_flags(changes: dict[str, Any], kind: str, factor: float | None) -> None:
    source = Source("megatron", Path("/run"), (), {}, MEGATRON | changes, "args")
    config = describe(source, Overrides()).described.config
    assert (config.rope_type, config.rope_scaling.get("factor")) == (kind, factor)


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, {}, True),
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, {"rope_scaling_factor": "8"}, False),
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0}, {"rope_scaling_factor": "32"}, False),
        ({"use_rope_scaling": True, "rope_scaling_factor": 32.0, "scale_factor": 32.0}, {}, False),  # Megatron-Bridge
        ({"use_rope_scaling": True, "rope_scaling_factor": 8.0}, {}, False),
        ({"use_rope_scaling": True}, {}, False),
        ({"use_rope_scaling": False, "rope_scaling_factor": 32.0}, {}, False),
    ],
)
def test_a_factor_that_megatrons_own_script_does_not_use(
    changes: dict[str, Any], settings: dict[str, str], said: bool
) -> None:
    """gpt_builders.py of core_v0.19.0: rope_scaling=args.use_rope_scaling, and no rope_scaling_factor."""
    source = Source("megatron", Path("/run"), (), {}, MEGATRON | changes, "args")
    found = describe(source, Overrides(settings=settings)).described
    assert any("trains with factor 8" in sentence for sentence in found.notices) is said
    if changes["use_rope_scaling"]:
        wanted = float(settings.get("rope_scaling_factor", changes.get("rope_scaling_factor", 8.0)))
        assert found.config.rope_scaling["factor"] == wanted


@pytest.mark.parametrize(
    ("mscale", "all_dim", "magnitude"),
    [
        (1.0, 0.0, None),
        (1.0, 1.0, None),
        (0.7, 1.0, None),
        (0.5, 0.0, 1 + 0.05 * np.log(40)),
        (0.0, 1.0, 1 / (1 + 0.1 * np.log(40))),
    ],
)
def test_megatrons_yarn_magnitude(mscale: float, all_dim: float, magnitude: float | None) -> None:
    """_yarn_get_concentration_factor: mscale's over mscale_all_dim's; transformers has no word for it if one is 0."""
    mla = {
        "multi_latent_attention": True, "rope_type": "yarn", "use_rope_scaling": False, "rotary_scaling_factor": 40,
        "mscale": mscale,
        "mscale_all_dim": all_dim, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_head_dim": 8, "qk_pos_emb_head_dim": 8, "v_head_dim": 8,
        "num_experts": 4, "moe_ffn_hidden_size": 32, "moe_router_topk": 2, "moe_layer_freq": 1,
        "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
        "moe_router_load_balancing_type": "none", "moe_router_num_groups": None, "moe_router_group_topk": None,
    }  # fmt: skip
    config = describe(Source("megatron", Path("/run"), (), {}, MEGATRON | mla, "args"), Overrides()).described.config
    assert (config.family, config.rope_type) == ("deepseek_v3", "yarn")
    assert config.rope_scaling["mscale"] == mscale
    assert config.rope_scaling.get("attention_factor") == (None if magnitude is None else pytest.approx(magnitude))


def test_rope_over_whole_heads_is_said_where_the_default_is_half(tmp_path: Path) -> None:
    """NemotronConfig's partial_rotary_factor is 0.5 unless config.json says otherwise."""
    folder = hf_models.make_hf("nemotron", tmp_path / "hf", rope_parameters=hf_models.ROPE, partial_rotary_factor=1.0)
    checkpoint = delivery.open(folder)
    assert checkpoint.config.partial_rotary_factor == 1.0
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "again")
    np.testing.assert_array_equal(transformers_logits(tmp_path / "again", TOKENS), transformers_logits(folder, TOKENS))


def test_wide_heads_have_no_place_in_llama_cpps_qwen2(tmp_path: Path) -> None:
    checkpoint = delivery.open(hf_models.make_hf("qwen2", tmp_path / "hf", head_dim=16))
    with pytest.raises(PlanError, match="qwen2 has heads of hidden_size / num_attention_heads"):
        delivery.plan(checkpoint, "gguf")


def test_llama_cpps_deepseek_needs_a_compressed_query(tmp_path: Path) -> None:
    checkpoint = delivery.open(hf_models.make_hf("deepseek_v3", tmp_path / "hf", q_lora_rank=None))
    with pytest.raises(PlanError, match="deepseek2 has a q_lora_rank, but for DeepSeek-V2-Lite's"):
        delivery.plan(checkpoint, "gguf")
    assert delivery.plan(checkpoint, "hf").tensors


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"rope_theta": 500000.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": hf_models.ROPE | {"partial_rotary_factor": 1.0}},
            "partial_rotary",
        ),
    ],
)
def test_settings_of_both_generations_that_contradict(
    change: dict[str, Any], where: str, hf_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers 5 believes rope_scaling before rope_parameters, older programs know only the former."""
    config = json.loads((hf_model("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError) as refused:
        delivery.open(hf_model("llama"), config=tmp_path)
    assert where in refused.value.problems[0].where
    assert "differs from rope_parameters" in refused.value.text()


def test_settings_of_both_generations_that_agree(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    rope = {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 10000}
    config = json.loads((hf_model("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | rope))
    assert delivery.open(hf_model("llama"), config=tmp_path).config.rope_type == "linear"
