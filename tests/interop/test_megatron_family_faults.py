"""Mistakes that no shape shows, planted into saves of Megatron: the logits of what is exported are far from the
model's. And the same models as a HybridModel has them, and arguments that a family cannot hold."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from oracles.megatron_of_hf import State, hybrid_of_hf, megatron_of_hf
from oracles.transformers_engine import transformers_logits
from support.megatron_writers import Ranks, simple_args, write_ranks, write_torch_dist

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
import family_cases

GLM = {"num_experts_per_tok": 2, "topk_group": 1}


def made(case: str, **more_args: Any) -> tuple[State, Namespace]:
    """Megatron's state and args of a recorded case."""
    recorded = family_cases.case(case)
    config = {**recorded.config, **({"layer_norm_epsilon": 1e-5} if case == "nemotron_h" else {})}
    config |= GLM if case.startswith("glm4_moe") else {}
    of_hf = hybrid_of_hf if case == "nemotron_h" else megatron_of_hf
    return of_hf(recorded.state(), config, **more_args)


def logits(root: Path, out: Path, case: str) -> Any:
    crossdock.export(root, out, "hf")
    return transformers_logits(out, family_cases.case(case).tokens)


def swapped(one: str, other: str) -> Callable[[State], State]:
    """Two tensors of the same shape under each other's names, in every layer."""
    first, second = re.escape(one), re.escape(other)

    def swap(state: State) -> State:
        out = {re.sub(rf"{first}\Z", "<other>", name): tensor for name, tensor in state.items()}
        out = {re.sub(rf"{second}\Z", one, name): tensor for name, tensor in out.items()}
        return {name.replace("<other>", other): tensor for name, tensor in out.items()}

    return swap


def shifted(state: State) -> State:
    """Every layer of Gated DeltaNet is the next one of its kind."""
    turn = {"0": "1", "1": "2", "2": "0"}
    of_kind = re.compile(r"decoder\.layers\.([012])\.self_attention\.")
    return {of_kind.sub(lambda m: m[0].replace(m[1], turn[m[1]]), name): tensor for name, tensor in state.items()}


def gates_behind_each_head(state: State) -> State:
    """The queries and gates of a group in turn, as Hugging Face has them, not all queries first."""
    key = "decoder.layers.3.self_attention.linear_qkv.weight"
    rows = state[key].reshape(2, 8, 16, -1)  # KV heads, (3 queries, 3 gates, key, value), head_dim
    order = [0, 3, 1, 4, 2, 5, 6, 7]
    return state | {key: np.ascontiguousarray(rows[:, order]).reshape(state[key].shape)}


def interleaved_gates(state: State) -> State:
    """Gate and up in turn, as Hugging Face's gpt_oss has them, not all gates first."""
    fc1 = re.compile(r"experts\.\d+\.linear_fc1\.weight\Z")
    return {
        name: np.stack(np.split(tensor, 2), 1).reshape(tensor.shape) if fc1.search(name) else tensor
        for name, tensor in state.items()
    }


def plain_out_norm(state: State) -> State:
    """The norm behind Gated DeltaNet as Hugging Face has it, not around zero."""
    return {name: tensor + 1 if name.endswith("out_norm.weight") else tensor for name, tensor in state.items()}


FAULTS: dict[str, tuple[str, Callable[[State], State]]] = {
    "query-and-key": ("qwen3_next", swapped("in_proj.weight.query", "in_proj.weight.key")),
    "value-and-z": ("qwen3_next", swapped("in_proj.weight.value", "in_proj.weight.z")),
    "beta-and-alpha": ("qwen3_next", swapped("in_proj.weight.beta", "in_proj.weight.alpha")),
    "A_log-and-dt_bias": ("qwen3_next", swapped("A_log", "dt_bias")),
    "a-kind-of-layers-shifted": ("qwen3_next", shifted),
    "gates-behind-each-head": ("qwen3_next", gates_behind_each_head),
    "out_norm-not-around-zero": ("qwen3_next", plain_out_norm),
    "z-and-x": ("nemotron_h", swapped("in_proj.weight.z", "in_proj.weight.x")),
    "B-and-C": ("nemotron_h", swapped("in_proj.weight.B", "in_proj.weight.C")),
    "A_log-and-D": ("nemotron_h", swapped("mixer.A_log", "mixer.D")),
    "gate-and-up-in-turn": ("gpt_oss", interleaved_gates),
    "expert_bias-forgotten": (
        "glm4_moe",
        lambda s: {n: t * 0 if n.endswith("expert_bias") else t for n, t in s.items()},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_logits_show_what_shapes_do_not(fault: str, tmp_path: Path) -> None:
    case, plant = FAULTS[fault]
    state, args = made(case)
    right = logits(write_torch_dist(tmp_path / "a", state, args, stacked=False), tmp_path / "right", case)
    wrong = logits(write_torch_dist(tmp_path / "b", plant(state), args, stacked=False), tmp_path / "wrong", case)
    assert np.abs(wrong - right).max() >= 0.01


def as_hybrid(state: State) -> State:
    """The mixer of layer i in layer 2i, its MLP in layer 2i + 1."""
    out = {}
    for key, tensor in state.items():
        if layer := re.match(r"decoder\.layers\.(\d+)\.(.*)", key):
            second = layer[2].startswith(("mlp.", "pre_mlp_layernorm"))
            key = f"decoder.layers.{2 * int(layer[1]) + second}.{layer[2]}"
        out[key.replace("final_layernorm", "final_norm")] = tensor
    return out


@pytest.mark.parametrize(("case", "pattern"), [("glm4_moe", "*-*E|*E*E"), ("qwen3_next", "GEGE|GE*E")])
@pytest.mark.parametrize("ranks", [False, True], ids=["torch_dist", "ranks"])
def test_a_hybrid_model_is_the_same_model(case: str, pattern: str, ranks: bool, tmp_path: Path) -> None:
    state, args = made(case)
    expected = logits(write_torch_dist(tmp_path / "gpt", state, args, stacked=False), tmp_path / "right", case)
    changes = {"num_layers": 8, "hybrid_layer_pattern": pattern, "moe_layer_freq": 1, "linear_attention_freq": None}
    hybrid = Namespace(**simple_args(args, **changes))
    if ranks:
        how = Ranks((((0, 1, 2, 3),), ((4, 5, 6, 7),)), tp=2, ep=2, experts="te")
        root = write_ranks(tmp_path / "root", as_hybrid(state), hybrid, how)
    else:
        root = write_torch_dist(tmp_path / "root", as_hybrid(state), hybrid, stacked=False)
    np.testing.assert_array_equal(logits(root, tmp_path / "hf", case), expected)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "sinks-of-another-family": ("glm4_moe", {"softmax_type": "off-by-one"}, "softmax_type"),
    "another-gate": ("gpt_oss", {"quick_geglu": False, "swiglu": True}, "quick_geglu"),
    "another-offset": ("gpt_oss", {"glu_linear_offset": 0.0}, "glu_linear_offset"),
    "another-delta-rule": ("qwen3_next", {"experimental_attention_variant": "gdn2"}, "experimental_attention_variant"),
    "attention-without-gate": ("qwen3_next", {"attention_output_gate": False}, "attn_gate"),
    "sinkhorn": ("glm4_moe", {"moe_router_load_balancing_type": "sinkhorn"}, "sinkhorn"),
    "groups-scored-otherwise": ("glm4_moe", {"moe_router_topk": 6}, "best two"),
    "latent-experts": ("nemotron_h", {"moe_latent_size": 8}, "moe_latent_size"),
    "another-epsilon-of-mamba": ("nemotron_h", {"layernorm_epsilon": 1e-3}, "inner_norm_eps"),
    "router-without-bias": ("glm4_moe", {"moe_router_enable_expert_bias": False}, "router_bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_family_cannot_hold_is_refused_by_argument(name: str, tmp_path: Path) -> None:
    case, changes, said = REFUSED[name]
    state, args = made(case, **changes)
    root = write_torch_dist(tmp_path / "root", state, args, stacked=False)
    with pytest.raises(crossdock.CrossdockError, match=said):
        crossdock.open(root)


@pytest.mark.parametrize(("case", "family"), [("qwen3", "qwen3"), ("qwen3_moe", "qwen3_moe"), ("qwen2", "qwen2")])
def test_the_text_model_of_one_that_sees(case: str, family: str, tmp_path: Path) -> None:
    """Megatron-Bridge's qwen_vl bridges: language_model. before every name, vision_model. beside them, mrope."""
    norms = {"qk_layernorm": case.startswith("qwen3"), "add_qkv_bias": case == "qwen2"}
    state, args = made(case, position_embedding_type="mrope", mrope_section=[4, 2, 2], **norms)
    both = {f"language_model.{name}": tensor for name, tensor in state.items()}
    both["vision_model.patch_embed.proj.weight"] = np.ones((4, 4), np.float32)
    root = write_torch_dist(tmp_path / "root", both, args, stacked=False)
    opened = crossdock.open(root)
    assert opened.config.family == family
    assert any("its text model is exported" in sentence for sentence in opened.described.notices)
    recorded = family_cases.case(case).logits
    assert np.abs(logits(root, tmp_path / "hf", case) - recorded).max() <= 1e-5


def test_a_stranger_beside_the_text_model_is_refused(tmp_path: Path) -> None:
    state, args = made("qwen3", qk_layernorm=True)
    both = {f"language_model.{name}": tensor for name, tensor in state.items()}
    both["reward_model.weight"] = np.ones((4, 4), np.float32)
    with pytest.raises(crossdock.CrossdockError):
        crossdock.export(write_torch_dist(tmp_path / "root", both, args, stacked=False), tmp_path / "hf", "hf")
