"""Each layer that is not plain attention or a plain MLP against transformers' module with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from crossdock.model.config import ModelConfig
from crossdock.model.layers.convolution import short_convolution
from crossdock.model.layers.delta import gated_delta_net, kimi_delta_attention
from crossdock.model.layers.layer import Array, Layer
from crossdock.model.layers.mamba import mamba, mamba2
from crossdock.model.layers.mlp import mlp
from crossdock.model.layers.rope import rotation
from crossdock.model.layers.router import route
from support.reference_logits import relative

N, HIDDEN = 70, 24  # more positions than a chunk of transformers' linear attention
BOUND = 3e-6  # of one layer, as a share of its largest value
Tensors = dict[str, Array]
PLAIN: dict[str, Any] = {
    "family": "none", "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 128, "norm_eps": 1e-5,
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """Canonical tensors of one layer, as the forward asks for them; large ones in two blocks."""

    tensors: Mapping[str, Array]

    def whole(self, name: str, layer: int | None = None) -> Array:
        return self.tensors[name]

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Array]:
        tensor = self.tensors[name] if expert is None else self.tensors[name][expert]
        middle = len(tensor) // 2
        yield from (tensor[:middle], tensor[middle:]) if middle else (tensor,)

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Array:
        return np.asarray(self.tensors[name][numbers])


def module_of(model_type: str, name: str, settings: Mapping[str, Any], *more: Any) -> torch.nn.Module:
    """transformers' module in float32 with random weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = getattr(import_module(f"transformers.models.{model_type}"), settings["config"])(
        **{key: value for key, value in settings.items() if key != "config"}
    )
    config._attn_implementation = "eager"
    made = getattr(import_module(f"transformers.models.{model_type}.modeling_{model_type}"), name)(
        config, *more
    ).float()
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            spread = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            parameter.copy_((1.0 if "norm" in key else 0.0) + torch.randn(parameter.shape) * spread)
    return made.eval()  # type: ignore[no-any-return]


def state(module: torch.nn.Module) -> Tensors:
    return {key: value.detach().numpy() for key, value in module.state_dict().items()}


def positions() -> Array:
    return np.random.default_rng(1).standard_normal((N, HIDDEN)).astype(np.float32)


def compare(module: torch.nn.Module, layer: Callable[[Layer, Array], Array], tensors: Tensors, **fields: Any) -> None:
    x = positions()
    with torch.no_grad():
        expected = module(torch.from_numpy(x)[None])
    expected = (expected[0] if isinstance(expected, tuple) else expected).reshape(N, -1).numpy()
    got = layer(Layer(ModelConfig(**PLAIN | fields), Held(tensors), 0), x)
    assert relative(got, expected) <= BOUND


LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip


def test_gated_delta_net() -> None:
    sizes = {"hidden_size": HIDDEN, "rms_norm_eps": 1e-5, "num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    module = module_of("qwen3_next", "Qwen3NextGatedDeltaNet", LINEAR | sizes | {"config": "Qwen3NextConfig"}, 0)
    own = state(module)
    fused = own["in_proj_qkvz.weight"].reshape(2, -1, HIDDEN)  # q, k, v and z of each key head
    q, k, v, z = np.split(fused, np.cumsum([8, 8, 12]), axis=1)
    b, a = np.split(own["in_proj_ba.weight"].reshape(2, 4, HIDDEN), 2, axis=1)
    kernels = np.split(own["conv1d.weight"][:, 0], np.cumsum([16, 16]))
    tensors = {"delta_q": q, "delta_k": k, "delta_v": v, "delta_z": z, "delta_a": a, "delta_b": b}
    tensors |= dict(zip(("delta_q_conv", "delta_k_conv", "delta_v_conv"), kernels, strict=True))
    tensors |= {"delta_a_log": own["A_log"], "delta_dt_bias": own["dt_bias"], "delta_norm": own["norm.weight"]}
    compare(module, gated_delta_net, tensors | {"delta_o": own["out_proj.weight"]}, **LINEAR)


def test_kimi_delta_attention() -> None:
    settings = {
        "config": "KimiLinearConfig", "hidden_size": HIDDEN, "rms_norm_eps": 1e-5, "num_hidden_layers": 1,
        "linear_num_heads": 3, "linear_head_dim": 8, "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention"],
    }  # fmt: skip
    own = state(module := module_of("kimi_linear", "KimiLinearDeltaAttention", settings, 0))
    tensors = {f"delta_{part}": own[f"{part}_proj.weight"] for part in "qkvbo"}
    kernels = np.split(own["conv1d.weight"][:, 0], 3)
    tensors |= dict(zip(("delta_q_conv", "delta_k_conv", "delta_v_conv"), kernels, strict=True))
    tensors |= {f"delta_f_{part}": own[f"forget_gate.f_{part}_proj.weight"] for part in "ab"}
    tensors |= {f"delta_g_{part}": own[f"g_{part}_proj.weight"] for part in "ab"}
    tensors |= {"delta_a_log": own["forget_gate.A_log"], "delta_dt_bias": own["forget_gate.dt_bias"]}
    heads = {"linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_gate_rank": 8}
    compare(module, kimi_delta_attention, tensors | {"delta_norm": own["o_norm.weight"]}, **heads)


def mamba_tensors(own: Tensors, rank: int, states: int) -> Tensors:
    inner = len(own["D"])
    low, b, c = np.split(own["x_proj.weight"], np.cumsum([rank, states]))
    tensors = {
        "ssm_x": own["in_proj.weight"][:inner], "ssm_z": own["in_proj.weight"][inner:], "ssm_dt_low": low, "ssm_b": b,
        "ssm_c": c, "ssm_x_conv": own["conv1d.weight"][:, 0], "ssm_x_conv_bias": own["conv1d.bias"],
        "ssm_dt": own["dt_proj.weight"], "ssm_dt_bias": own["dt_proj.bias"], "ssm_a_log": own["A_log"],
        "ssm_d": own["D"], "ssm_o": own["out_proj.weight"],
    }  # fmt: skip
    for ours, theirs in (("dt_low", "dt"), ("b", "b"), ("c", "c")):
        if f"{theirs}_layernorm.weight" in own:
            tensors[f"ssm_{ours}_norm"] = own[f"{theirs}_layernorm.weight"]
    return tensors


@pytest.mark.parametrize(
    ("model_type", "name", "norms"),
    [("mamba", "Mamba", ""), ("falcon_mamba", "FalconMamba", "unit"), ("jamba", "Jamba", "gamma")],
)
def test_mamba(model_type: str, name: str, norms: str) -> None:
    settings: dict[str, Any] = {"config": f"{name}Config", "hidden_size": HIDDEN, "num_hidden_layers": 1}
    if model_type == "jamba":
        settings |= {"mamba_d_state": 6, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 3, "rms_norm_eps": 1e-5}
    else:
        settings |= {"state_size": 6, "conv_kernel": 4, "expand": 2, "time_step_rank": 3}
    settings |= {"mixer_rms_eps": 1e-5} if norms == "unit" else {}
    mixer, more = (f"{name}MambaMixer", ()) if norms == "gamma" else (f"{name}Mixer", (False,))
    module = module_of(model_type, mixer, settings, 0, *more)
    compare(module, mamba, mamba_tensors(state(module), 3, 6), mamba_conv_bias=True, mamba_inner_norms=norms)


def mamba2_tensors(own: Tensors, groups: int, states: int) -> Tensors:
    inner = own["out_proj.weight"].shape[1]
    wide = [inner, inner, groups * states, groups * states]
    names = ("ssm_z", "ssm_x", "ssm_b", "ssm_c", "ssm_dt")
    tensors = dict(zip(names, np.split(own["in_proj.weight"], np.cumsum(wide)), strict=True))
    for suffix, values in (("", own["conv1d.weight"][:, 0]), ("_bias", own["conv1d.bias"])):
        convs = (f"ssm_{part}_conv{suffix}" for part in "xbc")
        tensors |= dict(zip(convs, np.split(values, np.cumsum(wide[1:3])), strict=True))
    tensors |= {"ssm_dt_bias": own["dt_bias"], "ssm_a_log": own["A_log"], "ssm_d": own["D"]}
    tensors |= {"ssm_norm": own["norm.weight"]} if "norm.weight" in own else {}
    return tensors | {"ssm_o": own["out_proj.weight"]}


FALCON_H1 = {
    "config": "FalconH1Config", "hidden_size": HIDDEN, "mamba_d_ssm": 48, "mamba_n_heads": 6, "mamba_d_head": 8,
    "mamba_d_state": 5, "mamba_n_groups": 2, "mamba_d_conv": 4, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
    "mamba_chunk_size": 16,
}  # fmt: skip
SIZES2 = {"mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_conv_bias": True}


def test_mamba2_with_a_norm_in_groups() -> None:
    settings = {
        "config": "Mamba2Config", "hidden_size": HIDDEN, "expand": 2, "num_heads": 6, "head_dim": 8, "state_size": 5,
        "n_groups": 2, "conv_kernel": 4, "num_hidden_layers": 1, "chunk_size": 16, "time_step_limit": (0.4, 0.9),
    }  # fmt: skip
    module = module_of("mamba2", "Mamba2Mixer", settings, 0)
    fields = SIZES2 | {"mamba_rms_norm": True, "time_step_limit": (0.4, 0.9)}
    compare(module, mamba2, mamba2_tensors(state(module), 2, 5), **fields)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_mamba2_of_falcon_h1(norm: bool, before: bool) -> None:
    settings = FALCON_H1 | {
        "mamba_rms_norm": norm, "mamba_norm_before_gate": before, "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 1.0,
        "ssm_multipliers": [0.7, 1.2, 0.9, 1.1, 0.8],
    }  # fmt: skip
    module = module_of("falcon_h1", "FalconH1Mixer", settings, 0)
    modeling = import_module("transformers.models.falcon_h1.modeling_falcon_h1")
    module.register_buffer("mup_vector", modeling.compute_mup_vector(module_config(settings)), persistent=False)
    multipliers = {"ssm_in_multiplier": 1.3, "ssm_multipliers": (0.7, 1.2, 0.9, 1.1, 0.8)}
    fields = SIZES2 | multipliers | {"mamba_rms_norm": norm, "mamba_norm_before_gate": before}
    compare(module, mamba2, mamba2_tensors(state(module), 2, 5), **fields)


def module_config(settings: Mapping[str, Any]) -> Any:
    kind = getattr(import_module("transformers"), settings["config"])
    return kind(**{key: value for key, value in settings.items() if key != "config"})


def test_short_convolution() -> None:
    settings = {
        "config": "Lfm2Config", "hidden_size": HIDDEN, "conv_L_cache": 3, "conv_bias": True, "num_hidden_layers": 1,
        "layer_types": ["conv"],
    }  # fmt: skip
    own = state(module := module_of("lfm2", "Lfm2ShortConv", settings, 0))
    tensors = {"conv_kernel": own["conv.weight"][:, 0], "conv_kernel_bias": own["conv.bias"]}
    for suffix in ("weight", "bias"):
        parts = (f"conv_{part}" + ("_bias" if suffix == "bias" else "") for part in "bcx")
        tensors |= dict(zip(parts, np.split(own[f"in_proj.{suffix}"], 3), strict=True))
    tensors |= {"conv_o": own["out_proj.weight"], "conv_o_bias": own["out_proj.bias"]}
    compare(module, short_convolution, tensors, short_conv_bias=True)


def fed(layer: Layer, x: Array) -> Array:
    return mlp(layer, x, x)


def test_experts_of_gpt_oss() -> None:
    settings = {
        "config": "GptOssConfig", "hidden_size": HIDDEN, "intermediate_size": 10, "num_local_experts": 6,
        "num_experts_per_tok": 2, "swiglu_limit": 0.8, "swiglu_alpha": 1.702,
    }  # fmt: skip
    own = state(module := module_of("gpt_oss", "GptOssMLP", settings))
    tensors = {"router": own["router.weight"], "router_logit_bias": own["router.bias"]}
    for place, part in enumerate(("exp_gate", "exp_up")):  # gate and up take turns in columns
        tensors[part] = own["experts.gate_up_proj"][:, :, place::2].swapaxes(1, 2)
        tensors[f"{part}_bias"] = own["experts.gate_up_proj_bias"][:, place::2]
    tensors |= {"exp_down": own["experts.down_proj"].swapaxes(1, 2), "exp_down_bias": own["experts.down_proj_bias"]}
    compare(
        module, fed, tensors, num_experts=6, num_experts_per_tok=2, moe_layers=(0,), expert_bias=True,
        router_logit_bias=True, swiglu_limit=0.8, swiglu_alpha=1.702, swiglu_offset=1.0,
    )  # fmt: skip


def test_latent_experts_of_nemotron_h() -> None:
    settings = {
        "config": "NemotronHConfig", "hidden_size": HIDDEN, "moe_latent_size": 10, "n_routed_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "moe_shared_expert_intermediate_size": 12, "n_group": 2,
        "topk_group": 1, "routed_scaling_factor": 1.5, "layers_block_type": ["moe"], "mlp_hidden_act": "relu2",
    }  # fmt: skip
    own = state(module := module_of("nemotron_h", "NemotronHMoE", settings))
    tensors = {
        "router": own["gate.weight"], "router_bias": own["gate.e_score_correction_bias"],
        "exp_latent_in": own["fc1_latent_proj.weight"], "exp_latent_out": own["fc2_latent_proj.weight"],
        "exp_up": own["experts.up_proj"], "exp_down": own["experts.down_proj"],
        "shexp_up": own["shared_experts.up_proj.weight"], "shexp_down": own["shared_experts.down_proj.weight"],
    }  # fmt: skip
    compare(
        module, fed, tensors, num_experts=6, num_experts_per_tok=2, moe_layers=(0,), moe_latent_size=10, n_group=2,
        mlp_gated=False, hidden_act="relu2", router_scoring="sigmoid", router_bias=True, routed_scaling_factor=1.5,
        shared_expert_intermediate_size=12,
    )  # fmt: skip


def test_the_best_expert_counts_for_a_group_of_deepseek_v2() -> None:
    settings = {
        "config": "DeepseekV2Config", "hidden_size": HIDDEN, "n_routed_experts": 8, "num_experts_per_tok": 3,
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "norm_topk_prob": False,
        "routed_scaling_factor": 1.5, "num_attention_heads": 4,
    }  # fmt: skip
    module, x = module_of("deepseek_v2", "DeepseekV2TopkRouter", settings), positions()
    fields = {
        "num_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "group_score": "max",
        "norm_topk_prob": False, "routed_scaling_factor": 1.5,
    }  # fmt: skip
    layer = Layer(ModelConfig(**PLAIN | fields), Held({"router": state(module)["weight"]}), 0)
    chosen, share = route(layer, x)
    with torch.no_grad():
        _, weights, indices = module(torch.from_numpy(x))
    order, theirs = np.argsort(chosen, axis=1), np.argsort(indices.numpy(), axis=1)
    np.testing.assert_array_equal(np.take_along_axis(chosen, order, 1), np.take_along_axis(indices.numpy(), theirs, 1))
    expected = np.take_along_axis(weights.numpy(), theirs, 1)
    assert relative(np.take_along_axis(share, order, 1), expected) <= BOUND


def test_xielu() -> None:
    settings = {"config": "ApertusConfig", "hidden_size": HIDDEN, "intermediate_size": 40, "hidden_act": "xielu"}
    own = state(module := module_of("apertus", "ApertusMLP", settings))
    tensors = {"ffn_up": own["up_proj.weight"], "ffn_down": own["down_proj.weight"]}
    tensors |= {f"ffn_act_{key}": own[f"act_fn.{key}"] for key in ("alpha_p", "alpha_n", "beta", "eps")}
    compare(module, fed, tensors, mlp_gated=False, hidden_act="xielu")


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.5, 2.0, 4.0, 8.0]}
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "linear": ({"factor": 4.0}, 20),
    "dynamic within the context": ({"factor": 4.0}, 20),
    "dynamic beyond the context": ({"factor": 4.0}, 200),
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": 32}, 20),
    "yarn without truncation": ({"factor": 4.0, "original_max_position_embeddings": 32, "truncate": False}, 20),
    "longrope of a short text": (LONG | {"original_max_position_embeddings": 32}, 20),
    "longrope of a long text": (LONG | {"original_max_position_embeddings": 32}, 60),
    "proportional": ({}, 20),
}


@pytest.mark.parametrize("case", ROPES)
def test_rope(case: str) -> None:
    """Frequencies against transformers' functions, which are all that its models call."""
    kind, (scaling, n) = case.split()[0], ROPES[case]
    partial = 0.5 if kind == "proportional" else 1.0
    parameters = {"rope_type": kind, "rope_theta": 1000.0, "partial_rotary_factor": partial} | scaling
    theirs = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=128, rope_parameters=parameters)
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=n)
    tables = {key: tuple(value) if isinstance(value, list) else value for key, value in scaling.items()}
    fields = {"rope_theta": 1000.0, "rope_type": kind, "rope_scaling": tables, "partial_rotary_factor": partial}
    got = rotation(ModelConfig(**PLAIN | fields), 0, n)
    angles = np.outer(np.arange(n, dtype=np.float32), frequencies.numpy())
    assert got is not None
    np.testing.assert_allclose(got.cos, np.cos(angles) * magnitude, rtol=0, atol=3e-6)
    np.testing.assert_allclose(got.sin, np.sin(angles) * magnitude, rtol=0, atol=3e-6)
