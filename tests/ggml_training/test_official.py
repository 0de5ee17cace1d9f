"""Every real file against what the official scripts made of it: tensors by sha256 and order, keys with their types."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.errors import PlanError
from crossdock.formats.gguf.container import GgufFile, read_header

WITH_RESULT = (
    "ggcp/a1-adam-ff96.ggcp", "ggcp/a3-adam-ff44.ggcp", "ggcp/d2-v0-adam-past3.ggcp", "ggcp/d3-v1-lbfgs-past3.ggcp",
    "ggcp/v1-adam-past3.ggcp", "ggcp/v1-lbfgs.ggcp", "ggcl/l1-adam.ggcl", "ggcl/l3-lbfgs.ggcl",
    "ggcl/n1-adam-needs-ff96.ggcl", "generated/g4-lbfgs-past4-m3.ggcl", "generated/g6-ranks-past1.ggcl",
    "generated/g11-v1-adam-past3.ggcp",
)  # fmt: skip
KINDS = {"str": "STRING", "u32": "UINT32", "u64": "UINT64", "i32": "INT32", "f32": "FLOAT32", "bool": "BOOL"}
MOMENTS = ("optimizer.adam.first_moments", "optimizer.adam.second_moments")


def exported(source: Path, output: Path, **settings: Any) -> tuple[crossdock.Plan, GgufFile, dict[str, str]]:
    """The plan, the file's header, and tensor name -> sha256; verified on the way."""
    checkpoint = crossdock.open(source)
    plan = crossdock.plan(checkpoint, "gguf-checkpoint", **settings)
    crossdock.run(plan, output, workers=2)
    assert crossdock.verify(output, checkpoint, **settings).ok
    data = output.read_bytes()
    header = read_header(output)
    return plan, header, {
        tensor.name: hashlib.sha256(data[tensor.offset : tensor.offset + tensor.nbytes]).hexdigest()
        for tensor in header.tensors
    }  # fmt: skip


def official(legacy: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((legacy / f"expected/{Path(name).name}.json").read_text())
    return found


@pytest.mark.parametrize("name", WITH_RESULT)
def test_the_official_result(name: str, legacy: Path, tmp_path: Path) -> None:
    wanted = official(legacy, name)
    plan, header, hashes = exported(legacy / name, tmp_path / "out.gguf", keep_order=True)
    shapes = [(t.name, list(reversed(t.shape)), t.codec, hashes[t.name]) for t in header.tensors]
    assert shapes == [(t["name"], t["shape"], "float32", t["sha256"]) for t in wanted["tensors"]]
    for key, (kind, value) in wanted["kv"].items():
        assert header.types[key] == KINDS[kind], key
        assert (repr(header.metadata[key]) if kind == "f32" else header.metadata[key]) == value, key
    more = {key: header.metadata[key] for key in header.metadata if key not in wanted["kv"]}
    samples = wanted["kv"]["training.sample_count"][1]
    context = wanted["kv"]["training.token_count"][1] // samples if samples else 0
    assert more == ({"llama.context_length": context} if context else {})
    assert plan.equality_checks == ()


@pytest.mark.parametrize("name", WITH_RESULT)
def test_only_the_moments_differ_from_it(name: str, legacy: Path, tmp_path: Path) -> None:
    """Two real master files are in an order that no GGUF trainer expects; the others are, or it cannot be known."""
    wanted = {tensor["name"]: tensor["sha256"] for tensor in official(legacy, name)["tensors"]}
    known = json.loads((legacy / "expected/permuted-moments.json").read_text())
    reordered = known.get(Path(name).stem, {})
    plan, _, hashes = exported(legacy / name, tmp_path / "out.gguf")
    assert hashes == wanted | reordered
    assert len(plan.equality_checks) == bool(reordered)
    said = " ".join(plan.warnings)
    assert ("are rearranged" in said) == bool(reordered)
    unknown = ("adam" in name and not reordered) or name.startswith("generated/") or "l1" in name or "n1" in name
    assert ("copied unchanged" in said) == unknown


def test_a_header_without_n_mult(legacy: Path, tmp_path: Path) -> None:
    """The official script fails on it; what is right is in the file: every tensor as it lies there, in this order."""
    raw = (legacy / "generated/g7-nomult.ggcl").read_bytes()
    _, header, hashes = exported(legacy / "generated/g7-nomult.ggcl", tmp_path / "out.gguf")
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 88, 4)]
    assert [header.metadata[f"training.{key}_count"] for key in ("iteration", "sample", "token")] == words[2:5]
    keys = ("embedding_length", "attention.head_count", "block_count", "rope.dimension_count")
    assert [header.metadata[f"llama.{key}"] for key in keys] == words[6:10]
    assert header.metadata["training.lora.rank.ffn_gate"] == words[16]
    pairs = [tensor for tensor in header.tensors if not tensor.name.startswith("optimizer.")]
    assert len(pairs) == 2 * (3 + 9 * words[8])
    at = 88
    for tensor in [*pairs, *(t for t in header.tensors if t.name in MOMENTS)]:
        place = next(i for i in range(at, len(raw)) if hashes[tensor.name] == hash_of(raw, i, tensor.nbytes))
        at = place + tensor.nbytes


def hash_of(raw: bytes, at: int, nbytes: int) -> str:
    return hashlib.sha256(raw[at : at + nbytes]).hexdigest() if at % 32 == 0 else ""


def test_a_file_that_ends_behind_the_model(legacy: Path, tmp_path: Path) -> None:
    """What master left behind with --use-lbfgs: no state to resume from, but the whole model."""
    source = legacy / "ggcp/bad-aborted-lbfgs.ggcp"
    checkpoint = crossdock.open(source)
    with pytest.raises(PlanError, match="no training state"):
        crossdock.plan(checkpoint, "gguf-checkpoint")
    output = tmp_path / "model.gguf"
    crossdock.run(crossdock.plan(checkpoint, "gguf"), output)
    assert crossdock.verify(output, checkpoint).ok
    raw, made, at = source.read_bytes(), output.read_bytes(), 44
    places = {tensor.name: tensor for tensor in read_header(output).tensors}
    layer = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")
    for name in ("token_embd", "output_norm", "output", *(f"blk.0.{inside}" for inside in layer)):
        tensor = places[f"{name}.weight"]
        at = raw.index(made[tensor.offset : tensor.offset + tensor.nbytes], at) + tensor.nbytes
    assert at == len(raw)
