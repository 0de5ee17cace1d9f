"""DeepSeek-V2 as it is published: V2-Lite without a compressed query, and what is refused of the large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from crossdock.errors import ConfigError
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits
from support import hf_models

TOKENS = np.random.default_rng(6).integers(0, 203, (2, 24))
YARN = {
    "rope_type": "yarn", "rope_theta": 10000, "factor": 40, "original_max_position_embeddings": 32, "beta_fast": 32,
    "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
# what config.json of DeepSeek-V2-Lite has beside the sizes (transformers 4.33)
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001, "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "hidden_act": "silu", "initializer_range": 0.02, "moe_layer_freq": 1, "n_group": 1, "norm_topk_prob": False,
    "pretraining_tp": 1,
    "rope_scaling": {k: v for k, v in YARN.items() if k not in ("rope_type", "rope_theta")} | {"type": "yarn"},
    "rope_theta": 10000, "scoring_func": "softmax", "seq_aux": True, "topk_group": 1, "topk_method": "greedy",
    "torch_dtype": "bfloat16", "use_cache": True, "transformers_version": "4.33.1",
}  # fmt: skip


def lite(folder: Path, **more: Any) -> Path:
    """V2-Lite but for its sizes: llama.cpp knows it by its 27 layers."""
    sizes = {"num_hidden_layers": 27, "q_lora_rank": None, "hidden_size": 32, "intermediate_size": 48}
    return hf_models.make_hf("deepseek_v2", folder, rope_parameters=YARN, **sizes, **more)


def test_the_lite_model_as_it_is_published(tmp_path: Path) -> None:
    """Its configuration means what transformers' own does; logits in llama.cpp are those of transformers."""
    model = lite(tmp_path / "m")
    config = hf_models.read_config(model)
    expected = transformers_logits(model, TOKENS)
    ours = crossdock.open(model).config
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "head_dim")}
    hf_models.write_config(model, kept | PUBLISHED)
    checkpoint = crossdock.open(model)
    assert checkpoint.config == ours
    crossdock.run(crossdock.plan(checkpoint, "gguf", dtype="float32"), tmp_path / "m.gguf")
    got = llama_logits(tmp_path / "m.gguf", TOKENS)
    assert np.abs(got - expected).max() <= 1e-4
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
    crossdock.run(crossdock.plan(crossdock.open(tmp_path / "m.gguf"), "hf", dtype="bfloat16"), tmp_path / "back")
    np.testing.assert_allclose(transformers_logits(tmp_path / "back", TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}, "n_group"),
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"scoring_func": "sigmoid"}, "scoring_func"),
    ],
)
def test_what_is_no_such_model(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = hf_models.make_hf("deepseek_v2", tmp_path / "m")
    hf_models.write_config(model, hf_models.read_config(model) | change)
    with pytest.raises(ConfigError, match=said):
        crossdock.open(model)
