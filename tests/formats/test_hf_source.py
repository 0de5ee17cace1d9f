"""Hugging Face folders as a source: every form that transformers has written, and what is said of broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from crossdock.errors import ConfigError, CrossdockError, FormatError, NotACheckpointError, PlanError
from crossdock.formats.hf.config import config_json, flattened, generation_config_json
from crossdock.formats.hf.source import open_source, read_config, sniff
from crossdock.formats.stored import Source
from crossdock.model.config import ModelConfig
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides
from oracles.files import hf_state
from support import hf_models

Made = Callable[[str], Path]
INDEX = "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": np.uint16}
FORMS: dict[str, Callable[[Path], Path]] = {
    "transformers4": hf_models.as_transformers4,
    "bin": hf_models.as_bin,
    "legacy": lambda folder: hf_models.as_bin(folder, legacy=True),
    "bin-shards": lambda folder: hf_models.as_bin(folder, shards=3),
}


def copied(folder: Path, to: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(folder, to))


def stored_values(source: Source) -> dict[str, Any]:
    """Every tensor of a source as float32, read where its extents say, without any code of crossdock."""
    out = {}
    for (_, name), tensor in source.tensors.items():
        (extent,) = tensor.extents
        with source.files[extent.file].path.open("rb") as file:
            file.seek(extent.offset)
            flat = np.frombuffer(file.read(extent.nbytes), DTYPES[tensor.dtype])
        if tensor.dtype == "bfloat16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        assert extent.strides is None
        out[name] = flat.reshape(tensor.shape)
    return out


def configured(source: Source) -> ModelConfig:
    """The canonical configuration."""
    return describe(source, Overrides()).described.config


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
def test_both_generations_of_config_say_the_same(recipe: str, hf_model: Made, tmp_path: Path) -> None:
    newer = configured(open_source(hf_model(recipe)))
    older = configured(open_source(hf_models.as_transformers4(copied(hf_model(recipe), tmp_path / "older"))))
    assert newer == older
    arguments = hf_models.RECIPES[recipe][1]
    assert newer.vocab_size == arguments["vocab_size"]
    assert newer.num_attention_heads == arguments.get("num_attention_heads", arguments.get("n_head"))
    assert newer.dtype == "bfloat16"
    rope = arguments.get("rope_parameters", {})
    assert newer.rope_type == rope.get("rope_type", "default")
    assert newer.rope_theta == rope.get("rope_theta", 10000.0)
    assert newer.rope_scaling.get("factor") == rope.get("factor")
    assert newer.partial_rotary_factor == rope.get("partial_rotary_factor", 1.0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_tensors(form: str, hf_model: Made, tmp_path: Path) -> None:
    whole = hf_model("llama")
    expected = hf_state(whole)
    source = open_source(FORMS[form](copied(whole, tmp_path / "m")))
    got = stored_values(source)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    assert len(source.files) == (3 if form == "bin-shards" else 1)
    assert configured(source) == configured(open_source(whole))


def test_shards(hf_model: Made, tmp_path: Path) -> None:
    folder = hf_models.make_hf("llama", tmp_path / "m", shard="100KB")
    source = open_source(folder)
    assert len(source.files) > 1
    got, expected = stored_values(source), hf_state(hf_model("llama"))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    (folder / "model.safetensors.index.json").unlink()  # every shard is there: the names say so
    assert stored_values(open_source(folder)).keys() == expected.keys()
    one = sorted(folder.glob("model-*.safetensors"))[0]
    with pytest.raises(NotACheckpointError, match="one of several shards"):
        open_source(one)


def test_a_weight_file_beside_its_config(hf_model: Made) -> None:
    folder = hf_model("qwen2")
    assert open_source(folder / "model.safetensors").tensors.keys() == open_source(folder).tensors.keys()


def test_weights_without_config(hf_model: Made, tmp_path: Path) -> None:
    folder = copied(hf_model("llama"), tmp_path / "m")
    (folder / "config.json").unlink()
    source = open_source(folder)
    with pytest.raises(ConfigError, match="has no configuration"):
        describe(source, Overrides())
    keys, where = read_config(hf_model("llama"))
    said = describe(source, Overrides(config=keys, config_at=where)).described.config
    assert said == configured(open_source(hf_model("llama")))


def test_sniff(hf_model: Made, tmp_path: Path) -> None:
    folder = hf_model("llama")
    assert sniff(folder)
    assert sniff(folder / "model.safetensors")
    assert not any(map(sniff, (folder / "config.json", tmp_path, tmp_path / "nothing")))


def test_what_travels(hf_model: Made, tmp_path: Path) -> None:
    folder = copied(hf_model("llama"), tmp_path / "m")
    assert [f.name for f in open_source(folder).companion_files] == ["generation_config.json"]


@pytest.mark.parametrize("number", [61, 62])
def test_the_layer_for_multi_token_prediction_is_left_out(number: int, tmp_path: Path) -> None:
    """Layer 61 of DeepSeek-V3 is beyond its 61 layers and ignored by transformers; any other would be lost."""
    from safetensors.numpy import save_file

    folder = hf_models.make_hf(
        "deepseek_v3", tmp_path / "m", num_hidden_layers=61, n_routed_experts=4, n_group=2, num_experts_per_tok=2
    )
    extra = {f"model.layers.{number}.{name}": np.zeros(64, np.float32) for name in ("enorm.weight", "x")}
    save_file(extra, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    if number == 61:
        assert extra.keys() <= crossdock.open(folder).resolved.unread.keys()
        return
    with pytest.raises(PlanError, match=r"layers\.62\.enorm\.weight: unmapped tensor"):
        crossdock.open(folder)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("form", ["state dict", "save_pretrained", "FSDP"])
def test_experts_stacked_as_transformers_has_them_in_memory(kind: str, form: str, tmp_path: Path) -> None:
    """transformers 5 holds gate_up_proj [E, 2F, H] in memory; it says itself what published names mean the same."""
    import torch
    import torch.distributed.checkpoint as dcp
    from transformers import AutoModelForCausalLM

    folder = hf_models.make_hf(kind, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "published")
    stacked, config = tmp_path / "stacked", None
    if form == "state dict":
        stacked.mkdir()
        torch.save(model.state_dict(), stacked / "pytorch_model.bin")
        shutil.copy(folder / "config.json", stacked)
    elif form == "save_pretrained":
        model.save_pretrained(stacked, save_original_format=False)
    else:
        dcp.save({"app": {"model": model.state_dict()}}, checkpoint_id=stacked, no_dist=True)
        config = folder
    source = crossdock.open(stacked, config=config)
    names = {name for _, name in source.source.tensors}
    assert "model.layers.1.mlp.experts.gate_up_proj" in names
    assert not any(".experts.0." in name for name in names)
    assert crossdock.diff(folder, source).same
    crossdock.run(crossdock.plan(source, "hf"), tmp_path / "back")
    for file in (tmp_path / "published").glob("*.safetensors"):
        assert names_and_bytes(tmp_path / "back" / file.name) == names_and_bytes(file)


def names_and_bytes(file: Path) -> dict[str, bytes]:
    """Every tensor of a safetensors file."""
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(file).items()}


# --- damage: what is done to a folder of shards, and what must be said about it ---------------------------------------


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change a JSON file of the folder."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def written(name: str, text: str) -> Callable[[Path], object]:
    """Put a file into the folder."""
    return lambda folder: (folder / name).write_text(text)


def first_shard(folder: Path) -> Path:
    """The first of the shards."""
    return sorted(folder.glob("model-*.safetensors"))[0]


def cut(folder: Path) -> None:
    """Lose the end of a shard."""
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def without_weights(folder: Path) -> None:
    """Neither shards nor index."""
    for file in (folder / INDEX, *folder.glob("*.safetensors")):
        file.unlink()


def with_a_gap(folder: Path) -> None:
    """No index, and the first shard is missing."""
    (folder / INDEX).unlink()
    first_shard(folder).unlink()


def doubled(folder: Path) -> None:
    """A shard under a second name, as copies made by hand are."""
    shards = sorted(folder.glob("model-*.safetensors"))
    shutil.copy(shards[0], shards[1])


DAMAGE: dict[str, tuple[Callable[[Path], object], type[CrossdockError], str]] = {
    "shard-missing": (lambda f: first_shard(f).unlink(), FormatError, r"names 1 files that do not exist"),
    "shard-cut": (cut, FormatError, r"model-00001-of-\d+\.safetensors: the file ends inside its tensors\n  expected"),
    "shard-twice": (doubled, FormatError, "is in two files: model-00001-"),
    "index-names-no-such-tensor": (
        edited(INDEX, lambda c: c["weight_map"].update(extra=next(iter(c["weight_map"].values())))),
        FormatError, r"places extra in model-.*which lacks it",
    ),
    "index-lacks-a-tensor": (
        edited(INDEX, lambda c: c["weight_map"].pop("model.norm.weight")),
        FormatError, r"model\.norm\.weight in .* is not in the index",
    ),
    "index-outside": (
        edited(INDEX, lambda c: c["weight_map"].update(a="../other.safetensors")), FormatError, "outside the folder",
    ),
    "index-of-numbers": (edited(INDEX, lambda c: c.update(weight_map={"a": 1})), FormatError, "not a map of tensors"),
    "index-without-map": (edited(INDEX, lambda c: c.pop("weight_map")), FormatError, "not a map of tensors"),
    "index-broken": (written(INDEX, "{"), FormatError, "not valid JSON"),
    "no-index-and-a-gap": (
        with_a_gap, FormatError, r"shards are missing, and so is the index",
    ),
    "no-weights": (
        without_weights, NotACheckpointError, "no weights found",
    ),
    "config-broken": (written("config.json", "{'a': 1}"), FormatError, "not valid JSON"),
    "config-list": (written("config.json", "[1]"), FormatError, "not a JSON object"),
    "config-deep": (written("config.json", "[" * 200_000), FormatError, "not valid JSON"),
    "config-bytes": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), FormatError, "not valid JSON"),
    "config-huge": (written("config.json", " " * ((16 << 20) + 1)), FormatError, "too large for this kind of file"),
    "quantised": (
        edited("config.json", lambda c: c.update(quantization_config={"quant_method": "gptq"})),
        ConfigError, r"quantised \(gptq\)",
    ),
    "rope-text": (edited("config.json", lambda c: c.update(rope_parameters="yarn")), ConfigError, "not an object"),
    "two-values": (
        written("config.json", '{"hidden_size": 64, "model_type": "llama", "hidden_size": 128}'),
        FormatError, "'hidden_size' occurs twice",
    ),
    "generation-cut": (written("generation_config.json", '{"eos_token_id": '), FormatError, "not valid JSON"),
    "generation-list": (written("generation_config.json", "[1]"), FormatError, "not a JSON object"),
    "adapter": (written("adapter_config.json", "{}"), NotACheckpointError, "this is an adapter, not a model"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several shards with their index; not to be written."""
    return hf_models.make_hf("llama", tmp_path_factory.mktemp("shards") / "m", shard="100KB")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, shards: Path, tmp_path: Path) -> None:
    damage, error, what = DAMAGE[kind]
    folder = copied(shards, tmp_path / "m")
    open_source(folder)
    damage(folder)
    with pytest.raises(error, match=what) as caught:
        open_source(folder)
    assert all(str(folder) in p.where or p.where in json.loads((shards / INDEX).read_text())["weight_map"]
               for p in caught.value.problems)  # fmt: skip


def test_rope_by_layer_type_is_refused_for_a_family_without_it(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path / "m")
    bases = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    edited("config.json", lambda c: c.update(rope_parameters=bases))(folder)
    with pytest.raises(ConfigError, match="family llama"):
        crossdock.open(folder)


def test_a_broken_shard_is_the_only_complaint(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path / "m")
    cut(folder)
    with pytest.raises(FormatError) as caught:
        open_source(folder)
    assert [p.where for p in caught.value.problems] == [str(first_shard(folder))]


def test_a_wrong_total_is_a_note(shards: Path, tmp_path: Path) -> None:
    folder = copied(shards, tmp_path / "m")
    assert not any("total_size" in key for key in open_source(folder).notes)
    edited(INDEX, lambda c: c["metadata"].update(total_size=7))(folder)
    assert "7" in open_source(folder).notes["total_size of the index"]


# --- config.json as it is written ------------------------------------------------------------------------------------

WRITTEN: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 10000.0, "rope_type": "default", "rope_scaling": {}},
    "llama3": {
        "rope_theta": 5e5, "rope_type": "llama3",
        "rope_scaling": {k: v for k, v in hf_models.ROPE_LLAMA3.items() if not k.startswith("rope_")},
    },
    "linear": {"rope_theta": 10000.0, "rope_type": "linear", "rope_scaling": {"factor": 4.0}},
    "partial": {"rope_theta": 10000.0, "rope_type": "default", "rope_scaling": {}, "partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_written_config_is_read_by_both_generations(kind: str) -> None:
    flat = {"dtype": "bfloat16", "hidden_size": 64, "eos_token_id": (2, 3), **WRITTEN[kind]}
    text = config_json(flat)
    both = json.loads(text)
    assert text == json.dumps(both, indent=2, sort_keys=True).encode() + b"\n"
    newer = {k: v for k, v in both.items() if k not in ("torch_dtype", "rope_theta", "rope_scaling")}
    older = {k: v for k, v in both.items() if k not in ("dtype", "rope_parameters")}
    expected = flat | {"eos_token_id": [2, 3]}
    for config in (both, newer, older):
        got = flattened(config, "config.json")
        assert {k: got[k] for k in expected} == expected
    assert (both["rope_scaling"] is None) == (WRITTEN[kind]["rope_type"] == "default")


@pytest.mark.parametrize("kind", WRITTEN)
def test_transformers_reads_the_written_config(kind: str, tmp_path: Path) -> None:
    import torch
    import transformers

    size = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 1, "vocab_size": 11, "head_dim": 8}
    flat = {"model_type": "llama", "dtype": "bfloat16", "max_position_embeddings": 256, **size, **WRITTEN[kind]}
    (tmp_path / "config.json").write_bytes(config_json(flat))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.dtype == torch.bfloat16
    rope = dict(config.rope_parameters)
    assert (rope.pop("rope_type"), rope.pop("rope_theta")) == (flat["rope_type"], flat["rope_theta"])
    assert rope.pop("partial_rotary_factor", 1.0) == flat.get("partial_rotary_factor", 1.0)
    assert rope == flat["rope_scaling"]


def test_no_rope_where_positions_are_learned() -> None:
    both = json.loads(config_json({"model_type": "gpt2", "n_embd": 8, "dtype": "float16"}))
    assert both == {"model_type": "gpt2", "n_embd": 8, "dtype": "float16", "torch_dtype": "float16"}
    assert flattened(both, "") == {"model_type": "gpt2", "n_embd": 8, "dtype": "float16"}


def test_generation_config(hf_model: Made, tmp_path: Path) -> None:
    import transformers

    config = configured(open_source(hf_model("llama")))
    (tmp_path / "generation_config.json").write_bytes(generation_config_json(config))
    got = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (got.bos_token_id, got.eos_token_id, got.pad_token_id) == (1, 2, None)


def test_special_ids_beyond_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    """transformers cannot build an embedding of 203 rows whose row 203 is padding."""
    import transformers

    model = hf_models.make_hf("llama", tmp_path / "m", eos_token_id=[2, 203], bos_token_id=202)
    config = json.loads((model / "config.json").read_text()) | {"pad_token_id": 203}
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").unlink()
    with pytest.raises(AssertionError, match="Padding_idx"):
        transformers.AutoModelForCausalLM.from_pretrained(model)
    plan = crossdock.plan(crossdock.open(model), to="hf")
    left_out = [sentence for sentence in plan.warnings if "is left out: the embedding has 203 rows" in sentence]
    assert [sentence.split(" is ")[0] for sentence in left_out] == ["eos_token_id 203", "pad_token_id 203"]
    crossdock.run(plan, tmp_path / "hf")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "hf" / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"], found.get("pad_token_id")) == (202, 2, None)
    assert crossdock.verify(tmp_path / "hf", against=model).ok
