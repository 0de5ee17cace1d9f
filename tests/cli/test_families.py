"""`crossdock families`: what it lists is what can be done, and its names are those of the files."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossdock import catalogue, delivery
from crossdock.cli import main
from crossdock.formats import registry
from crossdock.model.families import families
from support import hf_models


def run(*words: str) -> str:
    result = CliRunner().invoke(main, ["families", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_family_is_listed_once() -> None:
    listed = [line.split()[0] for line in run().splitlines()[1:]]
    assert listed == list(families()) == [one["name"] for one in json.loads(run("--json"))]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_model_can_be_planned_for_every_target_of_its_family(family: str, tmp_path: Path) -> None:
    entry = catalogue.family_entry(family)
    checkpoint = delivery.open(hf_models.make_hf(family, tmp_path / family))
    assert "hf" in entry.sources
    for target in set(entry.targets) & {"gguf", "hf", "trtllm"}:
        assert delivery.plan(checkpoint, target).tensors


def test_a_family_without_a_model_in_a_format_says_why() -> None:
    entry = catalogue.family_entry("gptnext")
    assert {"hf", "gguf"}.isdisjoint(entry.targets)
    assert "LayerNorm, rope and this MLP" in entry.limits["gguf"][0]
    assert "LayerNorm, rope and this MLP" in run("gptnext")


def test_targets_and_sources_are_formats_that_are_registered() -> None:
    for entry in catalogue.known_families():
        assert set(entry.sources) <= set(registry.names())
        assert set(entry.targets) | set(entry.limits) <= set(registry.targets())


def test_the_names_of_two_formats_stand_side_by_side() -> None:
    lines = [line.split() for line in run("qwen3_moe", "--show", "megatron", "hf").splitlines()]
    assert lines[0] == ["tensor", "megatron", "hf"]
    assert ["norm", "decoder.final_layernorm.weight", "model.norm.weight"] in lines
    names = json.loads(run("qwen3_moe", "--show", "megatron", "hf", "--json"))
    # transformers' Qwen3MoeSparseMoeBlock and Megatron-Core's TopKRouter
    assert [one["name"] for one in names["router"]["hf"]] == ["model.layers.{layer}.mlp.gate.weight"]
    assert "decoder.layers.{layer}.mlp.router.weight" in [one["name"] for one in names["router"]["megatron"]]
    assert names["exp_down"]["hf"][0]["shape"] == "embed moe_ffn"


def test_the_names_are_those_that_an_export_writes(tmp_path: Path) -> None:
    checkpoint = delivery.open(hf_models.make_hf("llama", tmp_path / "llama"))
    written = {tensor.name for tensor in delivery.plan(checkpoint, "gguf").tensors}
    listed = catalogue.tensor_names("llama", ["gguf"])
    known = {one.name.format(layer=0) for by_format in listed.values() for one in by_format["gguf"]}
    assert {name for name in written if not name.startswith("blk.") or name.startswith("blk.0.")} <= known


def test_a_family_file_is_shown_like_the_others(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "llama"\n[hf]\nwhen = "model_type == \'mine\'"\nlike = "llama"\n')
    entry = json.loads(run(str(file), "--json"))[0]
    assert (entry["name"], entry["sources"], entry["targets"]) == ("mine", ["hf"], ["hf", "onnx"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("lama",), "unknown family 'lama'"),
        (("llama", "--show", "hf", "mlx"), "unknown format 'mlx'"),
        (("gemma2", "--show", "hf", "peft"), "family gemma2 does not say how it is stored as peft"),
        (("--show", "hf", "gguf"), "--show requires the name of a family"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_shown_is_a_usage_error(words: tuple[str, ...], sentence: str) -> None:
    result = CliRunner().invoke(main, ["families", *words])
    assert result.exit_code == 2
    assert sentence in result.stderr
