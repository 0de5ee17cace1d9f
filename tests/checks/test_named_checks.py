"""Faults of the field, planted: each is reported by the check that has its name, and leaves no output behind.

The checks that have a file of their own are elsewhere: vocab-padding, tied-head, rope-scaling (tests/planning),
index-stale, half-checkpoint, adapter-unmerged (tests/formats/test_hf_source.py), nonfinite, resume-mismatch,
nondeterministic (tests/running), lora-noop (tests/ggml_training/test_engines.py), rope-order (tests/interop, by
logits), it-hangs (tests/cli/test_text.py), tokenizer (tests/tokenizers), untrusted-pickle (tests/attacks).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import crossdock
from conftest import Answer
from crossdock.errors import EnvironmentProblem
from crossdock.running import run
from support.hf_models import make_hf

Crossdock = Callable[..., Answer]


def planted(model: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """`model` with its tensors changed."""
    (file,) = model.glob("*.safetensors")
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return model


def refused(answer: Answer, out: Path, *said: str) -> None:
    assert answer.code == 3, answer.stderr
    for text in said:
        assert text in answer.stderr
    assert not out.exists()
    assert not out.with_name(out.name + ".partial").exists()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_tensor_dropped(to: str, tmp_path: Path, crossdock: Crossdock) -> None:
    def add_bias(tensors: dict[str, object]) -> None:
        tensors["model.layers.1.self_attn.o_proj.bias"] = tensors["model.layers.1.input_layernorm.weight"].clone()  # type: ignore[attr-defined]

    model, out = planted(make_hf("llama", tmp_path / "m"), add_bias), tmp_path / "out"
    answer = crossdock("export", model, "--to", to, "-o", out)
    refused(answer, out, "model.layers.1.self_attn.o_proj.bias", "unmapped tensor")


def test_a_tensor_that_is_missing(tmp_path: Path, crossdock: Crossdock) -> None:
    def lose(tensors: dict[str, object]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    model, out = planted(make_hf("llama", tmp_path / "m"), lose), tmp_path / "out"
    refused(crossdock("export", model, "--to", "hf", "-o", out), out, "ffn_up is incomplete in layers 1")


def test_experts_duplicated(tmp_path: Path, crossdock: Crossdock) -> None:
    names = [f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight" for i in (0, 2)]

    def overwrite(tensors: dict[str, object]) -> None:
        tensors[names[1]] = tensors[names[0]].clone()  # type: ignore[attr-defined]

    model = planted(make_hf("mixtral", tmp_path / "m"), overwrite)
    answer = crossdock("export", model, "--to", "hf", "-o", tmp_path / "out").ok()
    said = answer.stdout + answer.stderr
    assert "2 tensors have equal bytes" in said
    assert "tensors have equal bytes" in said
    assert all(name in said for name in names)
    clean = crossdock("export", make_hf("mixtral", tmp_path / "clean"), "--to", "hf", "-o", tmp_path / "clean-out").ok()
    assert "equal bytes" not in clean.stdout + clean.stderr


def test_experts_duplicated_within_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GGUF stacks experts: each is hashed by itself, in small blocks, and a run that goes on still knows."""
    name = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"

    def overwrite(tensors: dict[str, object]) -> None:
        for later in (2, 3):
            tensors[name.format(later)] = tensors[name.format(0)].clone()  # type: ignore[attr-defined]

    model, out = planted(make_hf("mixtral", tmp_path / "m"), overwrite), tmp_path / "out.gguf"
    for quantize in (None, "q8_0"):
        plan = crossdock.plan(crossdock.open(model), "gguf", quantize=quantize)
        with monkeypatch.context() as patch:
            patch.setattr(run, "put_in_place", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(EnvironmentProblem):
                crossdock.run(plan, out, force=True)
        report = crossdock.run(plan, out, force=True)
        assert report.resumed == len(plan.tensors)
        wanted = "experts have equal bytes: 0 = 2 = 3 in blk.0.ffn_gate_exps.weight; was one copied over another?"
        assert [w for w in report.warnings if "equal bytes" in w] == [wanted]
        told = json.loads(report.manifest.read_text())["tensors"]
        assert [(t["name"], t["equal_experts"]) for t in told if "equal_experts" in t] == [
            ("blk.0.ffn_gate_exps.weight", [[0, 2, 3]])
        ]
    clean = crossdock.plan(crossdock.open(make_hf("mixtral", tmp_path / "clean")), "gguf")
    report = crossdock.run(clean, tmp_path / "clean.gguf")
    assert not any("equal bytes" in warning for warning in report.warnings)


def test_layout_from_shape(tmp_path: Path, crossdock: Crossdock) -> None:
    """A transposed matrix is not turned back because its shape would fit."""

    def turn(tensors: dict[str, object]) -> None:
        name = "model.layers.0.mlp.down_proj.weight"
        tensors[name] = tensors[name].t().contiguous()  # type: ignore[attr-defined]

    model, out = planted(make_hf("llama", tmp_path / "m"), turn), tmp_path / "out"
    answer = crossdock("export", model, "--to", "gguf", "-o", out)
    refused(answer, out, "model.layers.0.mlp.down_proj.weight", "the shape does not fit", "intermediate_size=")


def test_dtype_lie(tmp_path: Path, crossdock: Crossdock) -> None:
    """What the configuration says of dtypes is not believed: the census is of the tensors."""
    model = make_hf("llama", tmp_path / "m", dtype="bfloat16")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    answer = crossdock("plan", model, "--to", "hf").ok()
    rows = [line.split() for line in answer.stdout.splitlines() if "bfloat16" in line]
    assert any(row[:2] == ["bfloat16", "bfloat16"] for row in rows)
    crossdock("export", model, "--to", "hf", "-o", tmp_path / "out").ok()
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_unknown_layout_flags(tmp_path: Path, crossdock: Crossdock) -> None:
    model, out = make_hf("llama", tmp_path / "m"), tmp_path / "out"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "mlp_gate_interleave": 4}))
    refused(
        crossdock("export", model, "--to", "gguf", "-o", out),
        out,
        "mlp_gate_interleave",
        "probably another architecture",
    )
    crossdock("export", model, "--to", "gguf", "--set", "mlp_gate_interleave=None", "-o", out).ok()


@pytest.mark.parametrize(("equal", "code"), [(True, 0), (False, 3)])
def test_tied_head(equal: bool, code: int, tmp_path: Path, crossdock: Crossdock) -> None:
    def keep_both(tensors: dict[str, object]) -> None:
        head = tensors["model.embed_tokens.weight"].clone()  # type: ignore[attr-defined]
        tensors["lm_head.weight"] = head if equal else head * 2

    model, out = planted(make_hf("qwen3", tmp_path / "m"), keep_both), tmp_path / "out"
    answer = crossdock("export", model, "--to", "gguf", "-o", out)
    assert answer.code == code, answer.stderr
    assert out.exists() == equal
    assert not out.with_name("out.partial").exists()
    assert ("to which the configuration ties it" in answer.stderr) != equal


def test_a_truncated_copy_is_named(tmp_path: Path, crossdock: Crossdock) -> None:
    good = make_hf("llama", tmp_path / "m")
    (file,) = good.glob("*.safetensors")
    whole = file.stat().st_size
    for size in (0, 7, 100, whole // 2, whole - 1):
        model = shutil.copytree(good, tmp_path / f"cut-{size}")
        with (model / file.name).open("r+b") as handle:
            handle.truncate(size)
        out = tmp_path / f"out-{size}"
        refused(crossdock("export", model, "--to", "hf", "-o", out), out, file.name)
