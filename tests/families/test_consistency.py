"""The data files against each other: every tensor placed with exactly its axes, every checkpoint of one family only."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import defaultdict

import pytest

from crossdock.layout.rules import layout
from crossdock.model.config import DEFAULTS, REQUIRED
from crossdock.model.expressions import Expression
from crossdock.model.families import families, family, files
from support.canonical_models import LACKING, SIZES, UNHELD

NAMES = sorted(families())
# a GGUF cannot tell a Mistral from a Llama, and a GPT leaves as the StarCoder that it then is
READ_AS = {
    "mistral": "llama",
    "internlm3": "llama",
    "iquestcoder": "llama",
    "glm4_moe_lite": "deepseek_v3",
    "sarvam_mla": "deepseek_v3",
    "gpt": "starcoder",
}
ARGS = {
    "normalization": ("RMSNorm", "LayerNorm", None),
    "swiglu": (True, False),
    "squared_relu": (True, False),
    "position_embedding_type": ("rope", "learned_absolute", None),
    "add_qkv_bias": (True, False),
    "qk_layernorm": (True, False),
    "num_experts": (8, None),
    "moe_shared_expert_gate": (True, False),
    "multi_latent_attention": (True, False),
    "moe_router_score_function": ("softmax", "sigmoid"),
    "window_size": ((128, 0), None),
    "add_bias_linear": (True, False),
    "rotary_percent": (1.0, 0.5),
    "num_query_groups": (1, 2, 4),
    "heterogeneous_layers_config_encoded_json": ("{}", None),
}
HF_TYPES = {"starcoder": "gpt_bigcode", "nemotron_nas": "nemotron-nas"}  # where model_type is not the family's name
PLAIN: dict[str, object] = {
    "normalization": "RMSNorm", "swiglu": True, "squared_relu": False, "position_embedding_type": "rope",
    "add_qkv_bias": False, "qk_layernorm": False, "num_experts": None, "multi_latent_attention": False,
    "window_size": None, "add_bias_linear": False, "group_query_attention": True, "num_query_groups": 4,
    "num_attention_heads": 4, "rotary_percent": 1.0, "heterogeneous_layers_config_encoded_json": None,
    "moe_router_score_function": "softmax", "moe_shared_expert_gate": False, "kv_channels": 16, "shapes": {},
    "softmax_type": None, "experimental_attention_variant": None, "attention_output_gate": None,
    "use_gated_attention": None, "spec": None, "hybrid_layer_pattern": None, "model_provider": None,
    "dsa_indexer_rope_interleaved": None,
}  # fmt: skip
WHOLE_WIDTH = {"decoder.layers.0.self_attention.q_layernorm.weight": (64,)}
GDN: dict[str, object] = {
    "experimental_attention_variant": "gated_delta_net", "attention_output_gate": True, "qk_layernorm": True,
}  # fmt: skip
SIGMOID: dict[str, object] = {"num_experts": 8, "moe_router_score_function": "sigmoid"}
DSA: dict[str, object] = {
    **SIGMOID, "multi_latent_attention": True, "qk_layernorm": True, "experimental_attention_variant": "dsa",
}  # fmt: skip
GPT: dict[str, object] = {
    "normalization": "LayerNorm", "swiglu": False, "position_embedding_type": "learned_absolute",
    "add_bias_linear": True,
}  # fmt: skip
ROPE = GPT | {"position_embedding_type": "rope"}
MEGATRON: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"window_size": (128, 0)},
    "nemotron_nas": {"heterogeneous_layers_config_encoded_json": "{}"},
    "qwen2": {"add_qkv_bias": True},
    "qwen3": {"qk_layernorm": True},
    "mixtral": {"num_experts": 8},
    "qwen2_moe": {"num_experts": 8, "moe_shared_expert_gate": True, "add_qkv_bias": True},
    "qwen3_moe": {"qk_layernorm": True, "num_experts": 8},
    "deepseek_v2": {"multi_latent_attention": True, "num_experts": 8, "qk_layernorm": True},
    "deepseek_v3": {
        "multi_latent_attention": True,
        "num_experts": 8,
        "qk_layernorm": True,
        "moe_router_score_function": "sigmoid",
    },
    "glm4_moe": SIGMOID,
    "minimax_m2": SIGMOID | {"qk_layernorm": True, "shapes": WHOLE_WIDTH},
    "olmoe": {"num_experts": 8, "qk_layernorm": True, "shapes": WHOLE_WIDTH},
    "gpt_oss": {"num_experts": 8, "swiglu": False, "softmax_type": "learnable", "add_bias_linear": True},
    "qwen3_5_text": GDN,
    "qwen3_next": GDN | {"num_experts": 8},
    "qwen3_5_moe_text": GDN | {"num_experts": 8, "position_embedding_type": "mrope"},
    "deepseek_v32": DSA,
    "glm_moe_dsa": DSA | {"dsa_indexer_rope_interleaved": True},
    "nemotron_h": {
        "hybrid_layer_pattern": "ME*E",
        "position_embedding_type": "none",
        "swiglu": False,
        "squared_relu": True,
        **SIGMOID,
    },
    "gemma3_text": {"model_provider": "gemma3_provider", "swiglu": False, "qk_layernorm": True},
    "gemma2": {"model_provider": "gemma2_provider", "swiglu": False},
    "gpt2": GPT,
    "starcoder": GPT | {"num_query_groups": 1},
    "gpt": GPT | {"num_query_groups": 2},
    "gptnext": ROPE | {"swiglu": True},
    "starcoder2": ROPE,
    "stablelm": ROPE | {"swiglu": True, "add_bias_linear": False, "rotary_percent": 0.5},
    "gpt_neox": ROPE | {"rotary_percent": 0.5},
    "nemotron": {"normalization": "LayerNorm", "swiglu": False, "squared_relu": True},
}


def fitting(format_name: str, keys: dict[str, object]) -> list[str]:
    """The families that say they are meant."""
    found = []
    for name in NAMES:
        when = _when(name, format_name)
        if when is not None and when.evaluate(keys):
            found.append(name)
    return found


@functools.cache
def _when(name: str, format_name: str) -> Expression | None:
    return files()[name].when(format_name)


FORMATS = ["hf", "gguf", "megatron", "megatron_rank", "trtllm"]
HELD = [(format_name, name) for format_name in FORMATS for name in NAMES if (format_name, name) not in UNHELD]


@pytest.mark.parametrize(("format_name", "name"), HELD)
def test_every_tensor_is_placed_with_exactly_its_axes(name: str, format_name: str) -> None:
    chosen = family(name)
    for rule in layout(format_name, chosen).rules:
        for pattern in rule.patterns:
            for tensor in rule.tensors:
                placed = sorted(atom.axis for atom in pattern.atoms(tensor if pattern.parts else ""))
                assert placed == sorted(chosen.tensors[tensor].axes), pattern.text


@pytest.mark.parametrize(("format_name", "name"), HELD)
def test_every_format_gives_what_a_configuration_needs(name: str, format_name: str) -> None:
    if format_name != "trtllm" or (format_name, name) not in LACKING:
        assert set(REQUIRED) - {"family"} <= set(layout(format_name, family(name)).reading.fields)


@pytest.mark.parametrize(("format_name", "name"), sorted(LACKING))
def test_a_format_without_the_model_says_so(format_name: str, name: str) -> None:
    rules = layout(format_name, family(name))
    assert [need.name for need in rules.writing.needs if need.condition.text == "False"]
    assert _when(name, format_name) is None


@pytest.mark.parametrize("name", [name for name in NAMES if ("hf", name) not in LACKING])
def test_model_type_names_one_family(name: str) -> None:
    model_type = HF_TYPES.get(name, name)
    assert fitting("hf", {"model_type": model_type}) == [name]
    (written,) = (w for w in layout("hf", family(name)).writing.keys if w.key == "model_type")
    assert written.value.written({}) == (model_type,)


@pytest.mark.parametrize("name", [name for name in NAMES if ("gguf", name) not in LACKING])
def test_architecture_names_one_family(name: str) -> None:
    """What a family writes is read as this family."""
    chosen = family(name)
    example = {"positive": 1, "fraction": 0.5, "some": (0,)}
    values = (
        DEFAULTS | SIZES | {field: example.get(allowed[0], allowed[0]) for field, allowed in chosen.requires.items()}
    )
    values |= {"sliding_window": 8 if "positive" in chosen.requires.get("sliding_window", ()) else None}
    values |= {"moe_layers": (0,), "shared_expert_intermediate_size": 8 * ("shexp_up" in chosen.tensors)}
    keys: dict[str, object] = defaultdict(lambda: None)
    for key in layout("gguf", chosen).writing.keys:
        with contextlib.suppress(LookupError, TypeError, ArithmeticError):  # of another kind of model
            found = key.value.written(values)
            if found and found[0] is not None:
                keys[key.key.replace(".", "_")] = found[0]
    if "exp_up" not in chosen.tensors:
        keys["expert_count"] = None
    keys["keys"] = keys
    assert fitting("gguf", keys) == [READ_AS.get(name, name)]


@pytest.mark.parametrize("name", MEGATRON)
def test_args_of_megatron_name_their_family(name: str) -> None:
    assert fitting("megatron", PLAIN | MEGATRON[name]) == [name]


def test_args_of_megatron_never_fit_two_families() -> None:
    for values in itertools.product(*ARGS.values()):
        keys: dict[str, object] = PLAIN | dict(zip(ARGS, values, strict=True))
        assert len(fitting("megatron", keys)) <= 1, keys
