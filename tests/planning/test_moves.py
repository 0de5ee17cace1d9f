"""Plans carried out in pure numpy: every move of every family, from every layout, cut into random chunks."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossdock.formats import registry
from crossdock.formats.stored import Extent, Source, StoredTensor
from crossdock.layout.rules import layout
from crossdock.model.config import ModelConfig, ResolvedConfig
from crossdock.model.families import family
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Move, Plan
from crossdock.planning.planner import make_plan
from crossdock.planning.tensors.resolve import resolve
from support.canonical_models import FAMILIES, LACKING, NUMBERS, Array, canonical, config_of, filled, laid_out

PADDING = -7
LAYOUTS: list[tuple[str, dict[str, int]]] = [
    ("hf", {}),
    ("gguf", {}),
    ("megatron", {}),
    ("megatron_rank", {"tp": 2, "pp": 2, "vpp": 2, "ep": 2, "etp": 2}),
    ("megatron_rank", {"tp": 4, "pp": 1, "vpp": 1, "ep": 4, "etp": 1}),
]
NO_NUMBERS = (0.0,) * 4  # of tensors that GGUF has in its keys
Data = dict[tuple[str, str], Array]


def chunked(shape: tuple[int, ...], rng: random.Random) -> tuple[Extent, ...]:
    """A grid of chunks over the shape, cut at random places."""
    cuts = []
    for size in shape:
        inner = sorted(rng.sample(range(1, size), min(size - 1, rng.randrange(3)))) if size > 1 else []
        cuts.append(list(itertools.pairwise([0, *inner, size])))
    return tuple(
        Extent(0, 0, 0, tuple(low for low, _ in box), tuple(high - low for low, high in box))
        for box in itertools.product(*cuts)
    )


def stored(
    format_name: str, ranks: dict[str, int], config: ModelConfig, tensors: dict[str, Array], rng: random.Random
) -> tuple[Source, Data]:
    """The model in a format, each tensor under one of its names, drawn at random, each container in random chunks."""
    every = [
        (turn, container)
        for turn, container in laid_out(format_name, config, ranks)
        if not (config.tie_word_embeddings and "head" in container.rule.tensors)
    ]
    home: dict[str, tuple[tuple[str, ...], int]] = {}
    for tensor in tensors:
        names = {(c.rule.tensors, turn) for turn, c in every if tensor in c.rule.tensors}
        free = sorted(name for name in names if not set(name[0]) & home.keys())
        if tensor not in home and free:
            chosen = rng.choice(free)
            home |= dict.fromkeys(chosen[0], chosen)
    found: dict[tuple[str, str], StoredTensor] = {}
    data: Data = {}
    for turn, container in every:
        if home[container.rule.tensors[0]] == (container.rule.tensors, turn):
            at = container.part, container.name
            extents = chunked(container.shape, rng)
            found[at] = StoredTensor(container.name, container.shape, "float32", extents, container.part)
            data[at] = filled(family(config.family), tensors, container)
    return Source(format_name, Path("/nowhere"), (), found, {}, "", ranks=ranks), data


def checkpoint_of(source: Source, config: ModelConfig) -> Checkpoint:
    chosen, rules = family(config.family), layout(source.format, family(config.family))
    described, numbers = ResolvedConfig(config, {}), {**config.as_dict(), **NUMBERS}
    return Checkpoint(source, chosen, described, numbers, rules, resolve(source, chosen, described, rules, numbers))


def copied(plan: Plan, moves: tuple[Move, ...], out: Array, data: Data) -> None:
    """Carry out moves element by element; no element may be written twice."""
    for move in moves:
        extent = plan.extents[move.extent]
        box = tuple(slice(o, o + n) for o, n in zip(extent.at.origin, extent.at.shape, strict=True))
        flat = np.ascontiguousarray(data[extent.part, extent.tensor][box]).reshape(-1)
        for index in itertools.product(*map(range, move.size)):
            src = move.src + sum(i * s for i, s in zip(index, move.src_step, strict=True))
            dst = move.dst + sum(i * s for i, s in zip(index, move.dst_step, strict=True))
            assert out[dst] == 0, "written twice"
            out[dst] = flat[src]


def carried_out(plan: Plan, data: Data) -> dict[str, Array]:
    result = {}
    for tensor in plan.tensors:
        out = np.zeros(int(np.prod(tensor.shape)), np.int64)
        copied(plan, tensor.moves, out, data)
        result[tensor.name] = out.reshape(tensor.shape)
    return result


# families whose targets want heads of hidden_size / num_attention_heads
SQUARE = {"qwen2", "nemotron", "gpt2", "starcoder", "gpt", "falcon", "starcoder2", "stablelm", "gpt_neox"}
# what a target lacks of what a family may have
LEFT_OUT: dict[tuple[str, str], dict[str, Any]] = {
    ("starcoder", "hf"): {"num_key_value_heads": 8},
    ("gpt", "gguf"): {"mlp_gated": False, "hidden_act": "gelu"},
    ("falcon", "gguf"): {"qkv_bias": False, "attn_out_bias": False, "mlp_bias": False, "hidden_act": "gelu"},
    ("nemotron_nas", "gguf"): {
        "num_key_value_heads_per_layer": (4, 0, 0, 8), "intermediate_size_per_layer": (256, 0, 256, 512),
        "linear_mlp_layers": (),
    },
}  # fmt: skip
CASES = [
    pytest.param(name, source, target, id="-".join((name, target, source[0] + "".join(map(str, source[1].values())))))
    for name, source, target in itertools.product(FAMILIES, LAYOUTS, ("hf", "gguf"))
    if not {(target, name), (source[0], name)} & LACKING
]


def small(name: str, **changes: Any) -> ModelConfig:
    sizes = {"hidden_size": 4, "vocab_size": 8, "num_hidden_layers": 4}
    if name in SQUARE:
        sizes |= {"hidden_size": 16, "head_dim": 2}
    return config_of(name, **(sizes | changes))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "source", "target"), CASES)
def test_every_element_arrives(name: str, source: tuple[str, dict[str, int]], target: str, seed: int) -> None:
    config = small(name, **(LEFT_OUT.get((name, source[0]), {}) | LEFT_OUT.get((name, target), {})))
    rng = random.Random(f"{name}{source}{target}{seed}")
    tensors = canonical(family(name), config)
    opened, data = stored(*source, config, tensors, rng)
    plan = make_plan(checkpoint_of(opened, config), registry.made_target(target, {}), lambda _: list(NO_NUMBERS))
    expected = {}
    for turn, container in laid_out(target, config):
        if turn == 0 and not container.rule.read_only:
            expected[container.name] = filled(family(name), tensors, container)
    got = carried_out(plan, data)
    assert sorted(got) == sorted(expected)
    for tensor, values in expected.items():
        np.testing.assert_array_equal(got[tensor], values)
    assert all(tensor.zeros == 0 for tensor in plan.tensors)


@pytest.mark.parametrize("ranks", [{}, {"tp": 4, "pp": 2, "vpp": 1, "ep": 1, "etp": 1}], ids=["whole", "tp4"])
@pytest.mark.parametrize("tied", [True, False])
def test_padding_rows_stay_behind(ranks: dict[str, int], tied: bool) -> None:
    """250 tokens, padded to 256 over four ranks: the last rank's share is cut short, and no padding arrives."""
    config = small("llama", vocab_size=250, tie_word_embeddings=tied)
    padded = small("llama", vocab_size=256, tie_word_embeddings=tied)
    tensors = canonical(family("llama"), padded)
    for name in ("embed", "head"):
        if name in tensors:
            tensors[name][250:] = PADDING
    rng = random.Random(1)
    opened, data = stored("megatron_rank" if ranks else "megatron", ranks, padded, tensors, rng)
    checkpoint = checkpoint_of(opened, config)
    assert checkpoint.resolved.padding == {"vocab": 6}
    assert "6 padding rows of the source are left out (stored 256, true 250)" in checkpoint.resolved.notices[0]
    plan = make_plan(checkpoint, registry.made_target("hf", {}), lambda _: list(NO_NUMBERS))
    got = carried_out(plan, data)
    np.testing.assert_array_equal(got["model.embed_tokens.weight"], tensors["embed"][:250])
    assert ("lm_head.weight" in got) is not tied
    assert not any((values == PADDING).any() for values in got.values())


def test_a_copy_of_a_tied_head_is_compared() -> None:
    """A last stage that keeps its own copy of the embedding: it is read as a twin, and its elements pair up."""
    config = small("llama", tie_word_embeddings=True)
    apart = small("llama", tie_word_embeddings=False)
    tensors = canonical(family("llama"), apart)
    ranks = {"tp": 2, "pp": 2, "vpp": 1, "ep": 1, "etp": 1}
    opened, data = stored("megatron_rank", ranks, apart, tensors, random.Random(2))
    plan = make_plan(checkpoint_of(opened, config), registry.made_target("hf", {}), lambda _: list(NO_NUMBERS))
    assert len(plan.equality_checks) == 2  # one for each tensor rank
    for rank, twin in enumerate(plan.equality_checks):
        one, other = np.zeros(twin.elements, np.int64), np.zeros(twin.elements, np.int64)
        copied(plan, twin.one, one, data)
        copied(plan, twin.other, other, data)
        np.testing.assert_array_equal(one, np.split(tensors["head"], 2)[rank].reshape(-1))
        np.testing.assert_array_equal(other, np.split(tensors["embed"], 2)[rank].reshape(-1))
