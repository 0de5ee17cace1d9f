"""llama.cpp's mixtures (q4_k_m and the like): its own quantiser's types for every tensor, and its bytes.

The types are those that `llama_model_quantize` gave (`oracles/llama_quantize.py` made the record, and held whole files
against it); the bytes are held here against `ggml_quantize_chunk`, which it calls.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import crossdock
import crossdock.running.run as running
from crossdock.errors import UsageError
from crossdock.formats.gguf.mixtures import mixtures
from oracles.files import read_gguf
from oracles.ggml_reference import ggml_quantize
from oracles.llama_quantize import NUMBERS, RECORD, summary
from support.hf_models import make_hf
from support.mixture_models import LLAMA, MODELS, make

RECORDED = json.loads(RECORD.read_text())
EIGHT = LLAMA | {"num_hidden_layers": 2, "num_local_experts": 8}
NAMES = {"float32": "F32", "float16": "F16"}


def test_every_mixture_and_model_is_recorded() -> None:
    assert set(RECORDED) == set(MODELS)
    assert all(set(types) == set(NUMBERS) for types in RECORDED.values())
    assert set(mixtures().named) == {*NUMBERS, "q3_k", "q4_k", "q5_k"}


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_has_llama_cpps_type(model: str, tmp_path: Path) -> None:
    checkpoint = crossdock.open(make(model, tmp_path / "hf"))
    for mixture, expected in RECORDED[model].items():
        plan = crossdock.plan(checkpoint, "gguf", quantize=mixture)
        types = {tensor.name: NAMES.get(tensor.dtype, tensor.dtype.upper()) for tensor in plan.tensors}
        assert summary(types) == expected, mixture
        assert plan.facts["general.file_type"] == NUMBERS[mixture]
        assert plan.facts["general.quantization_version"] == 2


@pytest.mark.parametrize("mixture", NUMBERS)
def test_bytes_are_ggmls(mixture: str, tmp_path: Path) -> None:
    """Of a folder in bfloat16 and of its GGUF in float32 alike: what two tools do in two steps."""
    make_hf("llama", tmp_path / "hf", **LLAMA | {"num_hidden_layers": 2, "intermediate_size": 384})
    crossdock.export(tmp_path / "hf", tmp_path / "f32.gguf", "gguf", dtype="f32")
    crossdock.export(tmp_path / "hf", tmp_path / "direct.gguf", "gguf", quantize=mixture)
    crossdock.export(tmp_path / "f32.gguf", tmp_path / "twice.gguf", "gguf", quantize=mixture)
    plain, direct = read_gguf(tmp_path / "f32.gguf"), read_gguf(tmp_path / "direct.gguf")
    assert read_gguf(tmp_path / "twice.gguf").tensors == direct.tensors
    assert {tensor.type for tensor in direct.tensors.values()} > {"F32", f"{mixture[:4]}".upper()}
    for name, tensor in direct.tensors.items():
        values = np.frombuffer(plain.tensors[name].raw, np.float32)
        if tensor.type == "F32":
            assert tensor.raw == values.tobytes()
        else:
            ours = np.frombuffer(tensor.raw, np.uint8)
            assert np.array_equal(ours, ggml_quantize(values, tensor.type, ours.size, tensor.shape[-1])), name


@pytest.mark.parametrize("mixture", ["q4_k_m", "q2_k"])
def test_an_output_is_verified_and_a_fault_is_found(mixture: str, tmp_path: Path) -> None:
    source = make_hf("llama", tmp_path / "hf", **LLAMA | {"num_hidden_layers": 2})
    out = tmp_path / "out.gguf"
    crossdock.export(source, out, "gguf", quantize=mixture)
    report = crossdock.verify(out, source)
    assert report.ok
    checks = {check.name: check for check in report.tensors}
    errors = checks["blk.0.attn_q.weight"].figures
    assert errors is not None
    assert 0.02 < errors.relative_rms < {"q4_k_m": 0.09, "q2_k": 0.4}[mixture]
    assert {found.status for found in crossdock.diff(source, out).tensors} == {"equal", "equal after cast"}
    raw = bytearray(out.read_bytes())
    raw[-100] ^= 1
    out.write_bytes(raw)
    assert [check.status for check in crossdock.verify(out, source).tensors].count("different") == 1


def test_bytes_depend_on_nothing_but_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on workers, memory, numba, nor on whether the run was interrupted."""
    plan = crossdock.plan(crossdock.open(make_hf("mixtral", tmp_path / "hf", **EIGHT)), "gguf", quantize="q4_k_m")
    assert {tensor.dtype for tensor in plan.tensors} == {"float32", "q4_k", "q5_k", "q6_k", "q8_0"}

    def interrupted(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    seen = []
    for workers, memory in ((1, 2 << 20), (4, 8 << 20), (2, 256 << 20)):
        crossdock.run(plan, tmp_path / f"{workers}.gguf", workers=workers, memory=memory)
        seen.append((tmp_path / f"{workers}.gguf").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        crossdock.run(plan, tmp_path / "resumed.gguf", workers=1, progress=interrupted)
    assert crossdock.run(plan, tmp_path / "resumed.gguf").resumed > 3
    monkeypatch.setattr(running, "compiled_for", lambda plan, memory: True)
    crossdock.run(plan, tmp_path / "compiled.gguf")
    seen += [(tmp_path / name).read_bytes() for name in ("resumed.gguf", "compiled.gguf")]
    assert len(set(seen)) == 1


def test_the_same_model_under_its_aliases(tmp_path: Path) -> None:
    checkpoint = crossdock.open(make("llama-odd-rows", tmp_path / "hf"))
    for alias, mixture in (("q4_k", "q4_k_m"), ("Q4-K-M", "q4_k_m"), ("Q5_K", "q5_k_m"), ("q3_k", "q3_k_m")):
        one, other = (crossdock.plan(checkpoint, "gguf", quantize=name) for name in (alias, mixture))
        assert one.tensors == other.tensors
        assert one.facts == other.facts


def test_other_formats_have_none(tmp_path: Path) -> None:
    checkpoint = crossdock.open(make("llama-odd-rows", tmp_path / "hf"))
    with pytest.raises(UsageError, match="hf has no quantisation q4_k_m"):
        crossdock.plan(checkpoint, "hf", quantize="q4_k_m")


@pytest.mark.parametrize("quantize", ["q4_k_m", "q5_k_s", "q6_k"])
def test_llama_cpp_computes_with_super_blocks(quantize: str, tmp_path: Path) -> None:
    source = make_hf("llama", tmp_path / "hf", hidden_size=256, intermediate_size=512)
    ids = np.random.default_rng(0).integers(0, 203, 48).tolist()
    crossdock.export(source, tmp_path / "model.gguf", "gguf", quantize=quantize)
    found = crossdock.verify(tmp_path / "model.gguf", source, logits=ids, logits_engine="llama.cpp").logits
    assert found is not None
    assert found.limit_distance is not None
    assert found.ok, found.failed or found.problems
    assert found.limit_distance / 20 < found.distance
