"""config.json: a key that no loader reads is refused, since TensorRT-LLM only warns; all else is read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from crossdock import delivery
from crossdock.errors import ConfigError, FormatError, InputError, PlanError
from crossdock.formats.trtllm.config import loader_keys, nested
from support import hf_models

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "named"),
    [("rotary_bas", "rotary_bas"), ("mapping.tp", "mapping.tp"), ("moe.num_expert", "moe.num_expert"),
     ("quantization.algo", "quantization.algo"), ("gpt_variant", "gpt_variant")],
)  # fmt: skip
def test_a_misspelt_key_is_refused(key: str, named: str) -> None:
    right = {"architecture": "LlamaForCausalLM", "rotary_base": 1e4, "mapping.tp_size": 2}
    assert nested(right)["mapping"] == {"tp_size": 2}
    with pytest.raises(PlanError, match=named):
        nested({**right, key: 1})


def test_a_model_that_the_loader_has_not_is_refused() -> None:
    with pytest.raises(PlanError, match="does not support this model"):
        nested({"architecture": "LlamaForCausalLm"})
    assert "LlamaForCausalLM" in loader_keys().models


@pytest.mark.parametrize(
    ("recipe", "overrides", "want"),
    [
        ("llama", {"rope_parameters": LLAMA3}, {"rotary_base": 5e5, "factor": 8.0, "type": "llama3"}),
        ("llama-linear", {}, {"type": "linear"}),
        ("llama-bias", {}, {"attn_bias": True, "mlp_bias": True}),
        ("qwen2", {}, {"attn_bias": True, "mlp_bias": False, "qwen_type": "qwen2", "rotary_base": 1e6}),
        ("gpt2", {}, {"bias": True, "position_embedding_type": "learned_absolute", "hidden_act": "gelu_new"}),
        ("nemotron", {}, {"bias": False, "rotary_pct": 0.5, "hidden_act": "squared-relu", "gpt_variant": "gpt2"}),
        ("falcon", {}, {"new_decoder_architecture": False, "parallel_attention": True, "bias": False}),
        ("falcon-new", {}, {"new_decoder_architecture": True, "parallel_attention": True}),
        ("falcon-sequential", {}, {"new_decoder_architecture": False, "parallel_attention": False, "bias": True}),
        # 7B style whatever the number of layers: the norms decide, not the layers
        ("falcon-new", {"num_hidden_layers": 32}, {"new_decoder_architecture": True}),
        ("gemma", {}, {"share_embedding_table": True, "use_parallel_embedding": True, "hidden_act": "gelu"}),
        ("gemma2", {}, {"architecture": "Gemma2ForCausalLM", "inter_layernorms": True, "query_pre_attn_scalar": 16,
                        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_act": "gelu"}),
        ("qwen3", {}, {"architecture": "Qwen3ForCausalLM", "qwen_type": "qwen3", "attn_bias": False, "head_size": 16}),
        ("qwen3_moe", {}, {"architecture": "Qwen3MoeForCausalLM", "qwen_type": "qwen3_moe", "num_experts": 6,
                           "top_k": 2, "normalization_mode": 1, "moe_intermediate_size": 96}),
        ("mixtral", {"num_local_experts": 4}, {"num_experts": 4, "top_k": 2, "normalization_mode": 1}),
    ],
)  # fmt: skip
def test_what_a_model_needs_is_said_and_read_back(
    recipe: str, overrides: dict[str, Any], want: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = delivery.open(hf_models.make_hf(recipe, tmp_path / "hf", **overrides))
    out = tmp_path / "out"
    delivery.run(delivery.plan(checkpoint, "trtllm", tp=2 if recipe != "falcon" else 1), out, workers=1)
    config = json.loads((out / "config.json").read_text())
    flat = {**(config.get("moe") or {}), **(config.get("rotary_scaling") or {}), **config}
    assert {key: flat[key] for key in want} == want
    back = delivery.open(out).config.as_dict()
    ours = checkpoint.config.as_dict()
    free = {"intermediate_size"} if checkpoint.config.num_experts else set()  # of no layer here
    assert {key for key in ours if ours[key] != back[key]} <= free


@pytest.mark.parametrize(
    ("recipe", "said"),
    [("deepseek_v3", "multi-head latent attention"), ("qwen3_moe-mixed", "experts in every layer or in none")],
)  # fmt: skip
def test_models_that_it_lacks_are_refused_with_the_reason(recipe: str, said: str, tmp_path: Path) -> None:
    checkpoint = delivery.open(hf_models.make_hf(recipe, tmp_path / "hf"))
    with pytest.raises(PlanError, match=said):
        delivery.plan(checkpoint, "trtllm")


def test_biases_that_its_llama_lacks(tmp_path: Path) -> None:
    """Biases on q, k and v alone are a qwen2 to TensorRT-LLM; its llama would drop them without a word."""
    folder = hf_models.make_hf("qwen2", tmp_path / "hf")
    config = hf_models.read_config(folder)
    hf_models.write_config(folder, config | {"model_type": "qwen2"})
    plan = delivery.plan(delivery.open(folder), "trtllm", tp=2)
    assert plan.facts["architecture"] == "Qwen2ForCausalLM"
    with pytest.raises(PlanError, match="with q, k and v alone it is a qwen2"):
        delivery.plan(delivery.open(folder, family="llama", set={"qkv_bias": "true"}), "trtllm", tp=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = delivery.open(hf_models.make_hf("llama", tmp_path / "hf"))
    delivery.run(delivery.plan(checkpoint, "trtllm", tp=2), tmp_path / "out", workers=1)
    return tmp_path / "out"


def test_missing_and_stray_rank_files(folder: Path) -> None:
    shutil.copy(folder / "rank1.safetensors", folder / "rank7.safetensors")
    (folder / "rank0.safetensors").unlink()
    with pytest.raises(FormatError) as caught:
        delivery.open(folder)
    assert "rank0.safetensors" in str(caught.value)
    assert "rank7.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"mapping": {"tp_size": -1}}, {"mapping": {"tp_size": 10**9}}, {"mapping": 3}, {"quantization": 7},
     {"mapping": {"tp_size": 2, "moe_ep_size": 3}}, {"num_hidden_layers": "many"}, {"num_hidden_layers": 10**9},
     {"quantization": {"quant_algo": "W4A16_AWQ"}}, {"rotary_scaling": 4}, {"rotary_scaling": {"factor": 2}},
     {"moe": [1]}],
)  # fmt: skip
def test_configurations_that_lie_are_errors(change: dict[str, Any], folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError):
        delivery.plan(delivery.open(folder), "hf")


def test_an_unknown_key_is_an_error(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"new_attention_scale": 2}))
    with pytest.raises(ConfigError, match="new_attention_scale"):
        delivery.open(folder)
