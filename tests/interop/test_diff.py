"""`crossdock diff`: what it calls equal against exports of every kind, and its figures against plain numpy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import crossdock
from crossdock.cli import main
from crossdock.running.diff import DiffReport, TensorDiff
from oracles.rewriting import Folder, Gguf, rewrite_gguf, rewrite_hf
from support import hf_models

ROOT = Path(__file__).parents[2]
Models = Callable[[str], Path]
INTO_GGUF = ("gpt2", "llama", "llama-head-dim", "llama-linear", "llama-bias", "qwen2-tied", "qwen3", "mixtral",
             "qwen3_moe", "deepseek_v3", "nemotron")  # fmt: skip
MEGATRON = (
    "deepseek-v019-dist-tp2pp2-fp32", "llama-v016-legacy-tp2pp2vpp2-fp32", "mixtral-tesynth-legacy-tp2ep2pp2-fp32",
    "nemotron-v016-dist-tp2-onep-fp32", "qwen3-v019-dist-tp2pp2-fp32",
)  # fmt: skip


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def exported(source: Path, out: Path, to: str, **options: Any) -> Path:
    crossdock.export(source, out, to, **options)
    return out


def by_name(report: DiffReport) -> dict[str, TensorDiff]:
    return {diff.name: diff for diff in report.tensors}


def computing(report: DiffReport) -> list[str]:
    """Fields that differ and are more than a label."""
    return [diff.field for diff in report.fields if not diff.label]


@pytest.mark.parametrize("recipe", INTO_GGUF)
def test_a_folder_and_its_gguf(recipe: str, hf_model: Models, tmp_path: Path) -> None:
    """bfloat16 against float32: equal. Against q4_1 in one MiB: equal after the cast, matrices only."""
    source = hf_model(recipe)
    plain = crossdock.diff(source, exported(source, tmp_path / "f32.gguf", "gguf", dtype="float32"))
    assert plain.same
    assert {diff.status for diff in plain.tensors} == {"equal"}
    small = exported(source, tmp_path / "q4.gguf", "gguf", quantize="q4_1")
    for one, other, arrow in ((source, small, "→ q4_1"), (small, source, "→ q4_1")):
        report = crossdock.diff(one, other, memory=1 << 20, workers=2)
        assert report.same
        assert by_name(report).keys() == by_name(plain).keys()
        cast = [diff for diff in report.tensors if diff.status == "equal after cast"]
        assert any(diff.cast.endswith(arrow) for diff in cast)
        assert all(diff.figures is not None and 0 < diff.figures.relative_rms < 0.12 for diff in cast)
        assert {diff.tensor for diff in cast} >= {"attn_o"}
        assert not any("norm" in diff.tensor or "bias" in diff.tensor for diff in cast)


@pytest.mark.parametrize("name", MEGATRON)
def test_ranks_against_one_folder(name: str, megatron_checkpoint: Models, tmp_path: Path) -> None:
    """Shards against bfloat16 files, both ways round, and against a quantised file."""
    source = megatron_checkpoint(name)
    folder = exported(source, tmp_path / "hf", "hf", dtype="bfloat16")
    report = crossdock.diff(source, folder)
    assert report.same, [diff for diff in report.tensors if not diff.same] + computing(report)
    assert {diff.status for diff in report.tensors} == {"equal"}  # the values of these runs fit in bfloat16
    assert crossdock.diff(folder, source).same
    small = crossdock.diff(source, exported(source, tmp_path / "q8.gguf", "gguf", quantize="q8_0"))
    assert small.same, [diff for diff in small.tensors if not diff.same] + computing(small)
    assert Counter(diff.cast for diff in small.tensors)["float32 → q8_0"] > len(small.tensors) // 3


def test_experts_are_folded(hf_model: Models) -> None:
    found = by_name(crossdock.diff(hf_model("mixtral"), hf_model("mixtral")))
    assert found["layers.2.exp_gate"].shape_a == (5, 160, 64)
    assert sum(diff.tensor == "exp_gate" for diff in found.values()) == 3


def test_figures_are_those_of_numpy(hf_model: Models, tmp_path: Path) -> None:
    """q8_0 against its source, without a cast in between: a second rounding makes it different."""
    import gguf

    source = hf_model("llama")
    good = exported(source, tmp_path / "good.gguf", "gguf", quantize="q8_0")
    bad = tmp_path / "bad.gguf"

    def change(model: Gguf) -> None:
        kind = gguf.GGMLQuantizationType
        coarse = gguf.dequantize(gguf.quantize(gguf.dequantize(model.array(name), kind.Q8_0), kind.Q4_0), kind.Q4_0)
        model.put(name, gguf.quantize(coarse, kind.Q8_0))

    name = "blk.1.ffn_down.weight"
    rewrite_gguf(good, bad, change)
    report = crossdock.diff(source, bad)
    assert [diff.name for diff in report.tensors if not diff.same] == ["layers.1.ffn_down"]
    diff = by_name(report)["layers.1.ffn_down"]
    assert diff.status == "different"
    values = {}
    for path in (good, bad):
        tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
        values[path] = gguf.dequantize(np.array(tensor.data), tensor.tensor_type).astype(np.float64)
    from safetensors.torch import load_file

    wanted = load_file(source / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].double().numpy()
    error = values[bad] - wanted
    assert diff.figures is not None
    assert diff.figures.max_abs == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert diff.figures.rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert diff.figures.relative_rms == pytest.approx(np.sqrt((error**2).sum() / (wanted**2).sum()), rel=1e-5)
    assert diff.different == np.count_nonzero(error)
    between = by_name(crossdock.diff(good, bad))["layers.1.ffn_down"]  # two files of one type: no cast explains it
    assert (between.status, between.cast) == ("different", "")
    assert between.different == np.count_nonzero(values[good] != values[bad])


def test_what_is_found_through_another_layout(hf_model: Models, tmp_path: Path) -> None:
    """A head off by one in GGUF's rope order, seen from Hugging Face's."""
    source = hf_model("llama")
    good, bad = exported(source, tmp_path / "good.gguf", "gguf", dtype="float32"), tmp_path / "bad.gguf"
    rewrite_gguf(
        good, bad, lambda model: model.put("blk.2.attn_q.weight", np.roll(model.array("blk.2.attn_q.weight"), 8, 0))
    )
    report = crossdock.diff(source, bad)
    assert not report.same
    assert [diff.name for diff in report.tensors if diff.status != "equal"] == ["layers.2.attn_q"]


def test_half_types_are_cast_both_ways(hf_model: Models, tmp_path: Path) -> None:
    """Between bfloat16 and float16 neither is the wider."""
    source = hf_models.make_hf("qwen2", tmp_path / "f32", dtype="float32")
    half = exported(source, tmp_path / "half.gguf", "gguf", dtype="float16")
    rough = exported(half, tmp_path / "rough", "hf", dtype="bfloat16")
    for pair in ((half, rough), (rough, half)):
        statuses = {diff.cast for diff in crossdock.diff(*pair).tensors if diff.status == "equal after cast"}
        assert statuses <= {"float16 → bfloat16", "float32 → bfloat16"}
        assert crossdock.diff(*pair).same


def test_a_lossy_type_from_a_smaller_one(hf_model: Models, tmp_path: Path) -> None:
    """q4_1 made q8_0 is rounded once more, though q8_0 is the wider."""
    small = exported(hf_model("llama"), tmp_path / "q4.gguf", "gguf", quantize="q4_1")
    large = exported(small, tmp_path / "q8.gguf", "gguf", quantize="q8_0")
    for pair in ((small, large), (large, small)):
        report = crossdock.diff(*pair)
        assert report.same
        assert by_name(report)["layers.0.attn_q"].cast == "q4_1 → q8_0"


@pytest.mark.parametrize("recipe", ["llama", "gpt2", "qwen3_moe"])
def test_fp8_by_the_scales_of_the_output(recipe: str, hf_model: Models, tmp_path: Path) -> None:
    """A scale a row, or a column in gpt2: equal after the cast, both ways round; one code off is seen."""
    source = hf_model(recipe)
    small = exported(source, tmp_path / "fp8", "hf", quantize="fp8")
    for one, other in ((source, small), (small, source)):
        report = crossdock.diff(one, other, memory=1 << 20, workers=2)
        assert report.same
        found = by_name(report)["layers.1.attn_o"]
        assert (found.status, found.cast) == ("equal after cast", "bfloat16 → float8_e4m3fn × scales")

    def change(folder: Folder) -> None:
        name = next(
            name for name in folder.tensors if ".1." in name and name.endswith(("o_proj.weight", "c_proj.weight"))
        )
        folder.tensors[name].view(torch.uint8)[3, 5] ^= 1

    rewrite_hf(small, tmp_path / "bad", change)
    report = crossdock.diff(source, tmp_path / "bad")
    assert [diff.name for diff in report.tensors if not diff.same] == ["layers.1.attn_o"]


def test_two_families_share_what_they_share(hf_model: Models) -> None:
    report = crossdock.diff(hf_model("llama"), hf_model("mistral"))
    found = by_name(report)
    assert {diff.status for diff in report.tensors} == {"equal"}  # one seed, one order of tensors
    assert len(found) == 3 * 9 + 3
    assert computing(report) == ["sliding_window"]
    assert not report.same
    moe = by_name(crossdock.diff(hf_model("llama"), hf_model("mixtral")))
    assert moe["layers.0.ffn_gate"].status == "only in A"
    assert moe["layers.0.exp_gate"].status == "only in B"
    assert moe["layers.0.exp_gate"].shape_b == (5, 160, 64)
    assert moe["layers.0.attn_q"].shape_a == (2, 4, 2, 4, 64)


def test_sizes_that_differ(hf_model: Models, tmp_path: Path) -> None:
    wide = hf_models.make_hf("llama", tmp_path / "wide", vocab_size=208, num_hidden_layers=2)
    report = crossdock.diff(hf_model("llama"), wide)
    found = by_name(report)
    assert (found["embed"].status, found["embed"].shape_a, found["embed"].shape_b) == (
        "other shape",
        (203, 64),
        (208, 64),
    )
    assert found["layers.2.attn_q"].status == "only in A"
    assert {diff.status for name, diff in found.items() if name.startswith("layers.1.")} == {"different"}
    assert computing(report) == ["num_hidden_layers", "vocab_size"]


def test_a_tied_head_is_the_embedding(hf_model: Models, tmp_path: Path) -> None:
    """Untied with a copy of the embedding: the values agree, the configuration does not."""
    tied = hf_model("qwen2-tied")
    untied = tmp_path / "untied"

    def change(folder: Folder) -> None:
        folder.config["tie_word_embeddings"] = False
        folder.tensors["lm_head.weight"] = folder.tensors["model.embed_tokens.weight"].clone()

    rewrite_hf(tied, untied, change)
    report = crossdock.diff(tied, untied)
    assert by_name(report)["head"].status == "equal"
    assert computing(report) == ["tie_word_embeddings"]
    assert "head" not in by_name(crossdock.diff(tied, tied))


def test_the_command(hf_model: Models, tmp_path: Path) -> None:
    source = hf_model("llama")
    out = exported(source, tmp_path / "x.gguf", "gguf", quantize="q8_0")
    text = run("diff", source, out, "--no-progress").stdout
    assert "same" in text.splitlines()[-1]
    row = [word for word in _row(text, "attn_q") if not word.startswith("0.")]
    assert row == ["attn_q", "3", "bfloat16", "|", "q8_0"]
    found = json.loads(run("diff", out, source, "--json").stdout)
    assert found["same"] is True
    assert {one["status"] for one in found["tensors"]} == {"equal", "equal after cast"}
    text = run("diff", source, out, "--config-b", _other_eps(source, tmp_path), code=1).stdout
    assert "DIFFERENT" in text.splitlines()[-1]
    row = _row(text, "norm_eps")
    assert row[:3] == ["norm_eps", "A", "1e-06"]
    assert "Configuration that differs" in text
    assert run("diff", source, out, "--set", "norm_eps=0.5").exit_code == 0  # given for both


def _row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def _other_eps(source: Path, folder: Path) -> Path:
    config = hf_models.read_config(source)
    config["rms_norm_eps"] = 0.25
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_errors_are_those_of_reading(tmp_path: Path) -> None:
    kjv = ROOT / "examples" / "tiny-kjv"
    assert run("diff", kjv, tmp_path, code=3).stderr.startswith("error: ")
    assert "--memory" in run("diff", kjv, kjv, "--memory", "1kB", code=2).stderr
