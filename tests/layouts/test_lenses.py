"""Lenses of every family in every format: containers are tiled exactly once, and hold every element once.

Every lens is applied as a numpy view made by the rule's own strides; the values that come out are compared with
slicing rules for Megatron's ranks that are written out here a second time.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from crossdock.errors import PlanError
from crossdock.layout.lenses import Geometry, containers
from crossdock.layout.notation import parse
from crossdock.layout.rules import Rule
from crossdock.model.families import family
from support.canonical_models import (
    FAMILIES,
    UNHELD,
    UNPLACED,
    Array,
    box_of,
    canonical,
    config_of,
    filled,
    laid_out,
    places,
    view,
)

GRID: list[tuple[str, dict[str, int]]] = [("hf", {}), ("gguf", {}), ("megatron", {})]
GRID += [("megatron_rank", {"tp": tp, "pp": pp, "vpp": vpp}) for tp, (pp, vpp) in itertools.product(
    (1, 2, 4, 8), ((1, 1), (2, 1), (2, 2), (4, 1)))]  # fmt: skip
GRID += [("megatron_rank", {"tp": 2, "pp": 2, "vpp": 1, "ep": ep, "etp": etp}) for ep in (1, 2, 4) for etp in (1, 2, 4)]
GRID += [("trtllm", {"tp": tp, "pp": pp, "etp": etp, "ep": tp // etp})
         for tp, etp in ((1, 1), (2, 2), (4, 2), (8, 4)) for pp in (1, 2, 4)]  # fmt: skip


# refused there: the config says what cannot be expressed (trtllm.toml, [fits])
REFUSED = {("trtllm", "deepseek_v2"), ("trtllm", "deepseek_v3")}
CASES = [
    pytest.param(name, ranks, id="-".join([name, ranks[0], *(f"{k}{n}" for k, n in ranks[1].items())]))
    for name in FAMILIES
    for ranks in GRID
    if (ranks[0], name) not in REFUSED | UNHELD
]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_every_container_is_tiled_and_every_element_is_held(name: str, ranks: tuple[str, dict[str, int]]) -> None:
    chosen, config = family(name), config_of(name)
    tensors = canonical(chosen, config)
    held = {tensor: np.zeros(values.shape, np.int64) for tensor, values in tensors.items()}
    seen: set[tuple[str, tuple[slice, ...]]] = set()
    names: set[tuple[str, str]] = set()
    written: dict[tuple[str, ...], int] = {}  # of a rule's alternatives the first that the model can have
    for turn, container in laid_out(*ranks[:1], config, ranks[1]):
        flat = np.zeros(math.prod(container.shape), np.int64)
        for lens in container.lenses:
            view(flat, container, lens)[...] += 1
            box = box_of(chosen, lens)
            key = lens.tensor, tuple((s.start, s.stop) for s in box)
            if (
                turn == written.setdefault(container.rule.tensors, turn)
                and key not in seen  # copies on other ranks are the same box
                and not container.rule.read_only
            ):
                seen.add(key)  # type: ignore[arg-type]
                held[lens.tensor][box] += 1
        assert (flat == 1).all(), f"{container.part}/{container.name} is not tiled exactly once"
        assert (container.part, container.name) not in names
        names.add((container.part, container.name))
    for tensor, counts in held.items():
        if tensor == UNPLACED.get((ranks[0], name)):
            assert not counts.any()
            continue
        assert (counts == places(chosen, config, tensor)).all(), f"{tensor} is not held exactly once"


def part_of(tensor: Array, number: int, ways: int, axis: int = 0) -> Array:
    """Equal chunk `number` of `ways`."""
    return np.split(tensor, ways, axis)[number]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_ranks_hold_what_megatron_cuts(tp: int) -> None:
    """qkv by whole groups, gate and up each by rows, proj and fc2 by columns, embedding and head by rows."""
    chosen, config = family("llama"), config_of("llama")
    tensors = canonical(chosen, config)
    got = {(c.part, c.name): filled(chosen, tensors, c) for _, c in laid_out("megatron_rank", config, {"tp": tp})}
    groups, heads, dim, hidden = 4, 2, 4, 6
    for rank, layer in itertools.product(range(tp), range(4)):
        part, prefix = f"tp{rank}.pp0.vpp0", f"decoder.layers.{layer}."
        q = tensors["attn_q"][layer].reshape(groups, heads * dim, hidden)
        k = tensors["attn_k"][layer].reshape(groups, dim, hidden)
        v = tensors["attn_v"][layer].reshape(groups, dim, hidden)
        whole = np.concatenate([q, k, v], 1).reshape(-1, hidden)
        np.testing.assert_array_equal(got[part, prefix + "self_attention.linear_qkv.weight"], part_of(whole, rank, tp))
        gate, up = tensors["ffn_gate"][layer], tensors["ffn_up"][layer]
        np.testing.assert_array_equal(
            got[part, prefix + "mlp.linear_fc1.weight"],
            np.concatenate([part_of(gate, rank, tp), part_of(up, rank, tp)]),
        )
        np.testing.assert_array_equal(
            got[part, prefix + "mlp.linear_fc2.weight"], part_of(tensors["ffn_down"][layer], rank, tp, 1)
        )
        proj = tensors["attn_o"][layer].reshape(hidden, -1)
        np.testing.assert_array_equal(
            got[part, prefix + "self_attention.linear_proj.weight"], part_of(proj, rank, tp, 1)
        )
        np.testing.assert_array_equal(
            got[part, "embedding.word_embeddings.weight"], part_of(tensors["embed"], rank, tp)
        )
        np.testing.assert_array_equal(got[part, "output_layer.weight"], part_of(tensors["head"], rank, tp))
        np.testing.assert_array_equal(
            got[part, prefix + "self_attention.linear_proj.bias"], tensors["attn_o_bias"][layer]
        )


def test_stages_hold_their_layers() -> None:
    """Interleaved: chunk v of stage p has the layers from (v * pp + p) * n on, counted from 0 in its names."""
    chosen, config = family("llama"), config_of("llama")
    tensors = canonical(chosen, config)
    found = {(c.part, c.name): c for _, c in laid_out("megatron_rank", config, {"pp": 2, "vpp": 2})}
    for pp, vpp in itertools.product(range(2), range(2)):
        part = f"tp0.pp{pp}.vpp{vpp}"
        norm = filled(chosen, tensors, found[part, "decoder.layers.0.input_layernorm.weight"])
        np.testing.assert_array_equal(norm, tensors["attn_norm"][vpp * 2 + pp])
    assert {part for part, name in found if name.startswith("embedding.")} == {"tp0.pp0.vpp0", "tp0.pp0.vpp1"}
    assert {part for part, name in found if name.startswith("output_layer.")} == {"tp0.pp1.vpp0", "tp0.pp1.vpp1"}


def test_experts_are_cut_over_expert_ranks() -> None:
    chosen, config = family("mixtral"), config_of("mixtral")
    tensors = canonical(chosen, config)
    ranks = {"tp": 2, "ep": 2, "etp": 2}
    found = {(c.part, c.name): c for _, c in laid_out("megatron_rank", config, ranks)}
    for ep, etp, local in itertools.product(range(2), range(2), range(2)):
        name = f"decoder.layers.3.mlp.experts.local_experts.{local}.linear_fc1.weight"
        got = filled(chosen, tensors, found[f"etp{etp}.ep{ep}.pp0.vpp0", name])
        gate, up = tensors["exp_gate"][3, ep * 2 + local], tensors["exp_up"][3, ep * 2 + local]
        np.testing.assert_array_equal(got, np.concatenate([part_of(gate, etp, 2), part_of(up, etp, 2)]))


def test_fewer_groups_than_ranks_are_copied() -> None:
    """2 KV heads over 8 ranks: `group/tp` gives 4 ranks the same head; a second axis is cut by what is left over."""
    sizes = {"group": 2, "head": 8, "embed": 3}
    for text, tensor in (("k : group/tp embed", "k"), ("q : (group/tp head/tp) embed", "q")):
        rule = Rule((tensor,), (parse(text),), "tp{tp}")
        found = list(containers(rule, rule.patterns[0], Geometry(sizes, {"tp": 8}, {}, {})))
        assert len(found) == 8
        for rank, container in enumerate(found):
            ranges = {p.axis: (p.low, p.high) for p in container.lenses[0].axes}
            assert ranges["group"] == (rank // 4, rank // 4 + 1)
            if tensor == "q":  # each rank has its own quarter of the group's 8 heads
                assert ranges["head"] == (rank % 4 * 2, rank % 4 * 2 + 2)
                assert container.shape == (2, 3)


@pytest.mark.parametrize(("size", "ranks"), [(6, 4), (3, 4), (250, 4)])
def test_what_does_not_divide_is_refused(size: int, ranks: int) -> None:
    rule = Rule(("k",), (parse("k : group/tp"),), "tp{tp}")
    with pytest.raises(PlanError, match=f"{size} of axis 'group' cannot be split over {ranks} ranks of 'tp'"):
        list(containers(rule, rule.patterns[0], Geometry({"group": size}, {"tp": ranks}, {}, {})))


def test_uneven_stages_come_from_partitions() -> None:
    cuts = {"layer": {(("pp", 0), ("vpp", 0)): (0, 1), (("pp", 1), ("vpp", 0)): (1, 4)}}
    rule = Rule(("norm",), (parse("layers.{layer/vpp/pp}.norm : embed"),), "pp{pp}")
    geometry = Geometry({"layer": 4, "embed": 2}, {"pp": 2, "vpp": 1}, cuts, {"norm": (0, 1, 2, 3)})
    found = [(c.part, c.name, c.lenses[0].axes[0].low) for c in containers(rule, rule.patterns[0], geometry)]
    assert found == [
        ("pp0", "layers.0.norm", 0),
        ("pp1", "layers.0.norm", 1),
        ("pp1", "layers.1.norm", 2),
        ("pp1", "layers.2.norm", 3),
    ]
