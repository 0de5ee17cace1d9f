"""Megatron saves as its own tools leave them: a tokenizer in the iteration's folder, folders of the conversion tool."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import crossdock
from conftest import TESTS
from crossdock.errors import ConfigError
from crossdock.formats import registry

EXAMPLES = TESTS.parent / "examples"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves of GPTModels, and what Megatron's gpt_hybrid_conversion.py made of them."""
    base = tmp_path_factory.mktemp("converted")
    with tarfile.open(TESTS / "data/megatron/converted.tar.xz") as archive:
        archive.extractall(base, filter="data")
    return base


def with_tokenizer(run: Path, tokenizer: Path) -> Path:
    shutil.copytree(EXAMPLES / "tiny-kjv", run)
    shutil.copytree(tokenizer, next(run.glob("iter_*")) / "tokenizer")
    return run


def test_the_tokenizer_in_the_iteration_goes_along_by_itself(tmp_path: Path) -> None:
    tokenizer = EXAMPLES / "tiny-kjv-tokenizer"
    run = with_tokenizer(tmp_path / "run", tokenizer)
    source = registry.open_source(run)
    assert {path.parent.name for path in source.companion_files} == {"tokenizer"}
    for option, name in ({}, "own"), ({"tokenizer": tokenizer}, "named"):
        crossdock.export(run, tmp_path / name, "hf", **option)
        crossdock.export(run, tmp_path / f"{name}.gguf", "gguf", **option)
    assert (tmp_path / "own.gguf").read_bytes() == (tmp_path / "named.gguf").read_bytes()
    files = sorted(file.name for file in (tmp_path / "named").iterdir())
    assert sorted(file.name for file in (tmp_path / "own").iterdir()) == files
    assert all((tmp_path / "own" / name).read_bytes() == (tmp_path / "named" / name).read_bytes() for name in files)
    manifest = json.loads((tmp_path / "own.manifest.json").read_text())
    assert manifest["tokenizer"]["from"] == "source"


def test_an_empty_tokenizer_folder_is_none(tmp_path: Path) -> None:
    run = with_tokenizer(tmp_path / "run", EXAMPLES / "tiny-kjv-tokenizer")
    folder = next(run.glob("iter_*")) / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()  # NullTokenizer
    assert registry.open_source(run).companion_files == ()
    assert any("the output has no tokenizer" in text for text in crossdock.plan(crossdock.open(run), "hf").warnings)


def exported(root: Path, out: Path, **options: object) -> dict[str, bytes]:
    crossdock.export(root, out, "hf", **options)
    return {file.name: file.read_bytes() for file in out.iterdir()}


def test_a_converted_run_without_args_gives_the_same_export(converted: Path, tmp_path: Path) -> None:
    gpt = exported(converted / "gpt-dense", tmp_path / "gpt")
    hybrid = exported(converted / "hybrid-dense", tmp_path / "hybrid", config=tmp_path / "gpt" / "config.json")
    assert gpt == hybrid


def test_a_converted_mixture_whose_args_have_no_pattern_gives_the_same_export(converted: Path, tmp_path: Path) -> None:
    args = registry.open_source(converted / "hybrid-moe-v016").metadata
    assert "hybrid_layer_pattern" not in args
    gpt = exported(converted / "gpt-moe-v016", tmp_path / "gpt")
    hybrid = exported(converted / "hybrid-moe-v016", tmp_path / "hybrid")
    assert gpt == hybrid


def test_names_and_args_of_other_numbers_of_layers_are_refused(converted: Path) -> None:
    from crossdock.formats.megatron.hybrid import stack_of_names

    names = {name for _, name in registry.open_source(converted / "gpt-dense").tensors}
    assert stack_of_names(names, {}, "args") is None
    names = {"decoder.final_norm.weight", "decoder.layers.0.self_attention.linear_proj.weight",
             "decoder.layers.1.mlp.router.weight", "decoder.layers.1.mlp.experts.linear_fc1.weight",
             "decoder.layers.2.self_attention.linear_kv_down_proj.weight", "decoder.layers.2.input_layernorm.weight",
             "decoder.layers.3.pre_mlp_layernorm.weight", "decoder.layers.3.mlp.linear_fc1.weight"}  # fmt: skip
    found = stack_of_names(names, {"num_layers": 4}, "args")
    assert found is not None
    assert (found.letters, found.folds) == ("*E+-", True)
    with pytest.raises(ConfigError, match="another number of layers than its args"):
        stack_of_names(names, {"num_layers": 2}, "args")
    assert stack_of_names({*names, "decoder.layers.5.mlp.linear_fc1.weight"}, {}, "args") is None
