"""Hugging Face models of every family become GGUF files with the tensors, bytes and keys of llama.cpp's
converter.

llama.cpp computes transformers' logits from them, and they come back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from conftest import Answer
from oracles import gguf_key_rules, gguf_rules
from oracles.files import GgufFile, hf_hashes, hf_state, read_gguf
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits
from support import hf_models

LAYOUTS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/gguf_layouts.json").read_text())
APPROXIMATE = (
    "gpt2",
    "nemotron",
    "starcoder",
    "falcon",
    "gemma",
    "gpt_neox",
)  # gelu by a table of half precision, relu squared
RECIPES = tuple(name for name in hf_models.RECIPES if name not in hf_models.NOT_IN_LLAMA_CPP)
TOKENS = np.random.default_rng(5).integers(0, 203, (2, 24))
Recipe = Callable[[str], Path]
# the sizes of the models behind tests/data/gguf_layouts.json
LISTED = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}
LISTED_MORE: dict[str, dict[str, Any]] = {
    "qwen2": {"rope_parameters": hf_models.ROPE},
    "qwen3": {"head_dim": 64, "tie_word_embeddings": False},
    "qwen3moe": {"head_dim": 64, "num_experts": 4, "moe_intermediate_size": 128},
    "llama3rope": {"rope_parameters": hf_models.ROPE_LLAMA3 | {"original_max_position_embeddings": 128}},
    "mixtral": {
        "num_local_experts": 4,
        "rms_norm_eps": 1e-5,
        "rope_parameters": hf_models.ROPE | {"rope_theta": 1000000.0},
    },
    "nemotron": {"head_dim": 64, "norm_eps": 1e-5},
    "deepseek3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "moe_intermediate_size": 128,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
    },
}
LISTED_MORE["deepseek2"] = LISTED_MORE["deepseek3"] | {"n_routed_experts": 4}
GPT2_LISTED = {"vocab_size": 320, "n_embd": 256, "n_head": 4, "n_layer": 2, "n_positions": 256}


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, crossdock: Callable[..., Answer], hf_model: Recipe
) -> Callable[[str, str], Path]:
    """(recipe, type) -> the GGUF file, made once."""
    base = tmp_path_factory.mktemp("gguf")

    def export(recipe: str, kind: str) -> Path:
        out = base / f"{recipe}-{kind}.gguf"
        if not out.exists():
            flag = "--dtype" if kind in ("f32", "f16", "bf16") else "-q"
            crossdock("export", hf_model(recipe), "--to", "gguf", "-o", out, flag, kind).ok()
        return out

    return export


def own_keys(file: GgufFile) -> dict[str, tuple[str, Any]]:
    """The keys that describe the model: neither general.* nor tokenizer.*."""
    return {name: entry for name, entry in file.keys.items() if not name.startswith(("general.", "tokenizer."))}


def same_keys(got: dict[str, tuple[str, Any]], expected: dict[str, tuple[str, Any]]) -> None:
    """Names, types and values; floats as float32, as GGUF stores them."""

    def stored(entry: tuple[str, Any]) -> tuple[str, Any]:
        return (entry[0], float(np.float32(entry[1]))) if entry[0] == "FLOAT32" else tuple(entry)

    assert {k: stored(v) for k, v in got.items()} == {k: stored(v) for k, v in expected.items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_tensors_and_keys_are_the_converters(
    recipe: str, exported: Callable[[str, str], Path], hf_model: Recipe
) -> None:
    file, config = read_gguf(exported(recipe, "f32")), hf_models.read_config(hf_model(recipe))
    expected = gguf_rules.gguf_tensors(hf_state(hf_model(recipe)), config)
    assert {name: t.shape for name, t in file.tensors.items()} == {name: t.shape for name, t in expected.items()}
    assert {t.type for t in file.tensors.values()} == {"F32"}
    different = [name for name, t in expected.items() if file.tensors[name].raw != t.tobytes()]
    assert not different
    same_keys(own_keys(file), gguf_key_rules.gguf_keys(config))
    assert file.keys["general.architecture"] == ("STRING", gguf_rules.ARCHITECTURES[config["model_type"]])
    assert file.keys["general.file_type"] == ("UINT32", 0)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_model_of_the_listed_sizes_has_the_listed_keys_and_tensors(
    kind: str, tmp_path: Path, crossdock: Callable[..., Answer]
) -> None:
    layout = LAYOUTS[kind]
    sizes = GPT2_LISTED if kind == "gpt2" else LISTED | LISTED_MORE.get(kind, {})
    if kind == "nemotron":
        sizes = {key: value for key, value in sizes.items() if key != "rms_norm_eps"}
    hf_models.make_hf(layout["recipe"], tmp_path / "hf", **sizes)
    crossdock("export", tmp_path / "hf", "--to", "gguf", "-o", tmp_path / "m.gguf", "--dtype", "f32").ok()
    file = read_gguf(tmp_path / "m.gguf")
    listed = {key: (entry[0], entry[1]) for key, entry in layout["kv"].items()}
    if kind == "deepseek2":  # which the converter writes where config.json has a scoring_func, as published ones do
        listed["deepseek2.expert_gating_func"] = ("UINT32", 1)
    same_keys(own_keys(file), {k: v for k, v in listed.items() if not k.startswith("general.")})
    shapes = dict(layout["tensors"]) | layout["layer1"]
    first = {f"blk.0.{name.removeprefix('blk.1.')}": dims for name, dims in layout["layer1"].items()}
    if layout["only_layer0"]:  # a dense first layer before expert layers
        first = {name: dims for name, dims in first.items() if ".ffn_norm" in name or ".attn_" in name}
    shapes |= first | layout["only_layer0"]
    got = {name: list(reversed(tensor.shape)) for name, tensor in file.tensors.items()}
    assert got == shapes


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_are_those_of_the_reference_quantisers(
    recipe: str, kind: str, exported: Callable[[str, str], Path], hf_model: Recipe
) -> None:
    file, config = read_gguf(exported(recipe, kind)), hf_models.read_config(hf_model(recipe))
    expected = gguf_rules.gguf_tensors(hf_state(hf_model(recipe)), config)
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]][0]
    types = {name: gguf_rules.expected_type(name, t, kind.upper(), block) for name, t in expected.items()}
    assert {name: tensor.type for name, tensor in file.tensors.items()} == types
    for name, tensor in expected.items():
        wanted = gguf.quants.quantize(np.ascontiguousarray(tensor), gguf.GGMLQuantizationType[types[name]])
        assert file.tensors[name].raw == wanted.tobytes(), name
    assert file.keys["general.file_type"][1] == gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"].value


def test_the_oracle_sees_rows_that_do_not_divide(hf_model: Recipe) -> None:
    expected = gguf_rules.gguf_tensors(
        hf_state(hf_model("llama-unaligned")), hf_models.read_config(hf_model("llama-unaligned"))
    )
    types = {gguf_rules.expected_type(name, t, "Q8_0", 32) for name, t in expected.items()}
    assert types == {"F32", "F16"}


def test_the_reference_bf16_is_round_to_nearest_even() -> None:
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
    assert quantised.tobytes() == values.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_llama_cpp_computes_transformers_logits(
    recipe: str, exported: Callable[[str, str], Path], hf_model: Recipe
) -> None:
    expected = transformers_logits(hf_model(recipe), TOKENS)
    got = llama_logits(exported(recipe, "f32"), TOKENS)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= (5e-3 if recipe.startswith(APPROXIMATE) else 1e-4)
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("recipe", hf_models.NOT_IN_LLAMA_CPP)
def test_what_llama_cpp_has_no_place_for_is_refused(
    recipe: str, tmp_path: Path, crossdock: Callable[..., Answer], hf_model: Recipe
) -> None:
    answer = crossdock("export", hf_model(recipe), "--to", "gguf", "-o", tmp_path / "m.gguf", "--dtype", "f32")
    assert answer.code == 3
    assert hf_models.NOT_IN_LLAMA_CPP[recipe] in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_expert_weights_that_llama_cpp_would_normalise_are_refused(
    tmp_path: Path, crossdock: Callable[..., Answer]
) -> None:
    """llama.cpp's qwen3moe always normalises the weights of the chosen experts; false would run wrongly."""
    hf_models.make_hf("qwen3_moe", tmp_path / "hf", norm_topk_prob=False)
    answer = crossdock("export", tmp_path / "hf", "--to", "gguf", "-o", tmp_path / "m.gguf", "--dtype", "f32")
    assert answer.code == 3
    assert "norm_topk_prob" in answer.stderr
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
@pytest.mark.parametrize("generation", [4, 5])
def test_hf_to_hf_keeps_tensors_and_logits(
    recipe: str, generation: int, tmp_path: Path, crossdock: Callable[..., Answer], hf_model: Recipe
) -> None:
    source = hf_model(recipe)
    if generation == 4:
        source = hf_models.as_transformers4(hf_models.make_hf(recipe, tmp_path / "four"))
    crossdock("export", source, "--to", "hf", "-o", tmp_path / "out").ok()
    assert hf_hashes(tmp_path / "out") == hf_hashes(hf_model(recipe))
    np.testing.assert_array_equal(
        transformers_logits(tmp_path / "out", TOKENS), transformers_logits(hf_model(recipe), TOKENS)
    )


@pytest.mark.parametrize("recipe", ["llama3", "gpt2", "deepseek_v3", "nemotron", "qwen3", "llama-linear"])
def test_both_generations_of_config_give_the_same_gguf(
    recipe: str, tmp_path: Path, exported: Callable[[str, str], Path], crossdock: Callable[..., Answer]
) -> None:
    old = hf_models.as_transformers4(hf_models.make_hf(recipe, tmp_path / recipe))
    crossdock("export", old, "--to", "gguf", "-o", tmp_path / "m.gguf", "--dtype", "f32").ok()
    got, expected = read_gguf(tmp_path / "m.gguf"), read_gguf(exported(recipe, "f32"))
    assert got.tensors == expected.tensors
    assert own_keys(got) == own_keys(expected)


@pytest.mark.parametrize("recipe", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bin-shards", "safetensors-shards"])
def test_every_form_of_weight_files_is_the_same_model(
    recipe: str,
    form: str,
    tmp_path: Path,
    exported: Callable[[str, str], Path],
    crossdock: Callable[..., Answer],
) -> None:
    folder = hf_models.make_hf(recipe, tmp_path / "hf", shard="60KB" if form == "safetensors-shards" else "5GB")
    if form == "safetensors-shards":
        assert len(list(folder.glob("*.safetensors"))) > 2
    else:
        hf_models.as_bin(folder, legacy=form == "legacy", shards=3 if form == "bin-shards" else 1)
    crossdock("export", folder, "--to", "gguf", "-o", tmp_path / "m.gguf", "--dtype", "f32").ok()
    assert read_gguf(tmp_path / "m.gguf").tensors == read_gguf(exported(recipe, "f32")).tensors


@pytest.mark.parametrize("recipe", RECIPES)
def test_there_and_back_again(
    recipe: str,
    tmp_path: Path,
    exported: Callable[[str, str], Path],
    crossdock: Callable[..., Answer],
    hf_model: Recipe,
) -> None:
    source, back = hf_model(recipe), tmp_path / "back"
    # Llama 3.1's scaling is in the file only as divisors, so the config has to come along
    config = ("--config", source / "config.json") if recipe == "llama3" else ()
    crossdock("export", exported(recipe, "f32"), "--to", "hf", "-o", back, "--dtype", "bfloat16", *config).ok()
    before, after = hf_hashes(source), hf_hashes(back)
    assert sorted(before) == sorted(after)
    # routers that transformers keeps in float32 stay float32 from a GGUF, whatever --dtype
    wide = {name for name, entry in after.items() if ".mlp.gate." in name and entry[0] == "float32"}
    narrow = {name: entry for name, entry in before.items() if entry[0] == "bfloat16" and name not in wide}
    assert {name: after[name] for name in narrow} == narrow
    values, returned = hf_state(source), hf_state(back)
    assert all(np.array_equal(values[name], returned[name]) for name in values)
    np.testing.assert_array_equal(transformers_logits(back, TOKENS), transformers_logits(source, TOKENS))
