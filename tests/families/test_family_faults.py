"""Faults that conversions make in the wild, in the GGUF of every family: `verify` names the tensors, and no others.

The first and the last layer that have the tensors get the fault: rope's pairs, swapped gate and up, a norm that was
forgotten, norms and layers that changed places, heads in another order.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import family_checks as checks
import numpy as np
import pytest
from family_cases import case, names

from crossdock import delivery
from oracles.rewriting import Array, Gguf, rewrite_gguf

NOT_YET = frozenset((Path(__file__).parent / "not_yet.txt").read_text().split())
# one case of each model type; packed ones have no rows of numbers
CASES = {
    case(name).model_type: name
    for name in reversed([name for name in names() if name not in NOT_YET])
    if case(name).gguf is not None and all(tensor.dtype not in ("U8", "I8") for tensor in case(name).tensors)
}
Fault = Callable[[Gguf], tuple[str, ...]]  # plants the fault; the tensors that differ then, () where it does not apply


def of(model: Gguf, pattern: str) -> list[str]:
    """The tensors whose whole name fits, in the order of the file."""
    return [name for name in model.tensors if re.fullmatch(pattern, name)]


def exchanged(model: Gguf, one: str, other: str) -> tuple[str, ...]:
    if one not in model.tensors or other not in model.tensors:
        return ()
    a, b = model.array(one), model.array(other)
    if a.shape != b.shape or np.array_equal(a, b):
        return ()
    model.swap(one, other)
    return one, other


def layers(model: Gguf) -> tuple[str, ...]:
    """Two layers' output matrices of attention, or of what is in its place, or of the MLP."""
    for kind in ("attn_output", "ssm_out", "shortconv.out_proj", "ffn_down"):
        found = of(model, rf"blk\.\d+\.{kind}\.weight")
        if len(found) > 1 and (planted := exchanged(model, found[0], found[-1])):
            return planted
    return ()


def gate_and_up(model: Gguf) -> tuple[str, ...]:
    for kind in ("", "_exps", "_shexp"):
        for gate in of(model, rf"blk\.\d+\.ffn_gate{kind}\.weight"):
            if planted := exchanged(model, gate, gate.replace("ffn_gate", "ffn_up")):
                return planted
    return ()


def norms(model: Gguf) -> tuple[str, ...]:
    for one in of(model, r"blk\.\d+\.(attn_norm|post_attention_norm)\.weight"):
        for other in ("ffn_norm", "post_attention_norm", "post_ffw_norm"):
            if planted := exchanged(model, one, re.sub(r"[a-z_]+_norm", other, one)):
                return planted
    return ()


def changed(model: Gguf, pattern: str, how: Callable[[Array], Array]) -> tuple[str, ...]:
    found = of(model, pattern)
    if not found:
        return ()
    model.put(found[-1], how(model.array(found[-1])))
    return (found[-1],)


def norm_forgotten(model: Gguf) -> tuple[str, ...]:
    return changed(model, r"(blk\.\d+\.[a-z0-9_]+|output)_norm\.weight", np.ones_like)


def pairs(array: Array) -> Array:
    """Rows that are the two halves of something as neighbours."""
    rows = len(array)
    return array.reshape(2, rows // 2, -1).swapaxes(0, 1).reshape(array.shape)


def rope_pairs(model: Gguf) -> tuple[str, ...]:
    return changed(model, r"blk\.\d+\.attn_(q|qkv|q_b)\.weight", pairs)


def values_reversed(model: Gguf) -> tuple[str, ...]:
    return changed(model, r"blk\.\d+\.attn_(v|qkv|v_b|kv_b)\.weight", lambda array: array[::-1])


FAULTS: dict[str, Fault] = {
    "layers changed places": layers,
    "gate and up swapped": gate_and_up,
    "norms changed places": norms,
    "a norm forgotten": norm_forgotten,
    "rope's halves as neighbours": rope_pairs,
    "values in another order": values_reversed,
}
# the least share of families in which a fault has something to change
LEAST = {"layers changed places": 0.95, "a norm forgotten": 0.9, "gate and up swapped": 0.6}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    @functools.cache
    def made(kind: str) -> tuple[Path, Path]:
        work = tmp_path_factory.mktemp("faults")
        source = case(CASES[kind]).write(work / "hf")
        return source, checks.export(source, work / "m.gguf", "gguf", dtype="float32")

    return made


def differing(out: Path, source: Path) -> set[str]:
    report = delivery.verify(out, source)
    return {tensor.name for tensor in report.tensors if tensor.status != "equal"}


@pytest.mark.parametrize("kind", sorted(CASES))
def test_verify_names_the_tensors_of_every_fault_and_no_others(
    kind: str, converted: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, out = converted(kind)
    planted = 0
    for name, plant in FAULTS.items():
        wrong: list[str] = []
        faulty = tmp_path / f"{plant.__name__}.gguf"
        rewrite_gguf(out, faulty, lambda model, plant=plant, wrong=wrong: wrong.extend(plant(model)))  # type: ignore[misc]
        assert differing(faulty, source) == set(wrong), name
        planted += bool(wrong)
    assert planted >= 2


@pytest.mark.parametrize("name", sorted(LEAST))
def test_most_families_have_the_fault(name: str, converted: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """So that a fault that is planted nowhere does not pass for one that is caught."""
    applies = []
    for number, kind in enumerate(sorted(CASES)[::4]):
        rewrite_gguf(
            converted(kind)[1], tmp_path / f"{number}.gguf", lambda model: applies.append(bool(FAULTS[name](model)))
        )
    assert np.mean(applies) >= LEAST[name], applies
