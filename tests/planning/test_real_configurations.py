"""Configurations of real checkpoints and of tiny models: families, round trips, what a plan reads and needs."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning_args import Hf, Megatron

from conftest import CHECKPOINTS
from crossdock import delivery
from crossdock.errors import ConfigError, InputError, PlanError, TokenizerError, UsageError
from crossdock.formats import registry
from crossdock.model.config import FIELDS
from crossdock.model.families import families
from crossdock.planning.config.overrides import Overrides
from oracles.transformers_engine import transformers_logits
from support import hf_models
from support.canonical_models import UNHELD

# ---- real checkpoints


def family_of(name: str) -> str:
    first = name.split("-")[0]
    return {"tiny": "llama", "deepseek": "deepseek_v3"}.get(first, first)


@pytest.mark.parametrize("name", [*CHECKPOINTS, "tiny-kjv"])
def test_the_family_of_megatron_checkpoints(name: str, megatron_checkpoint: Megatron) -> None:
    assert delivery.open(megatron_checkpoint(name)).family.name == family_of(name)


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
def test_the_family_of_hugging_face_models(recipe: str, hf_model: Hf) -> None:
    expected = "llama" if recipe == "llama3" else recipe.split("-")[0]
    assert delivery.open(hf_model(recipe)).family.name == expected


BY_FAMILY = {
    "gpt2": "gpt2-v019-dist-tp2-fp32",
    "llama": "llama-v019-dist-tp2pp2-bf16",
    "qwen2": "qwen2-v019-legacy-tp2-fp32",
    "qwen3": "qwen3-v019-dist-tp2pp2-fp32",
    "mixtral": "mixtral-v019-dist-tp2ep2pp2-bf16",
    "deepseek_v3": "deepseek-v019-dist-tp2pp2-fp32",
    "nemotron": "nemotron-v016-dist-tp2-onep-fp32",
}
# a Mistral without a window is a Llama in all but name
SAME = {("llama", "mistral")}
# Megatron's names are the same for all of these, and its gpt and gptnext may be anything with LayerNorm
SAME_IN_MEGATRON = SAME | {
    ("gpt2", "starcoder"), ("gpt2", "gpt"), ("nemotron", "gptnext"), ("deepseek_v3", "glm4_moe_lite"),
}  # fmt: skip
# the same names, and a configuration that both can have: who names the family answers for it
ALIKE = SAME | {
    ("deepseek_v3", "glm4_moe_lite"), ("deepseek_v3", "sarvam_mla"), ("llama", "ernie4_5"), ("llama", "granite"),
    ("llama", "internlm3"), ("llama", "iquestcoder"), ("llama", "seed_oss"), ("llama", "smollm3"),
    ("mistral", "smollm3"),
}  # fmt: skip
# a Qwen2 is a Llama with some biases: refused only where it cannot be written as one
NEARLY = {("qwen2", "llama")}


@pytest.mark.parametrize("wrong", sorted(families()))
@pytest.mark.parametrize("right", sorted(BY_FAMILY))
def test_a_wrong_family_is_refused_for_megatron(right: str, wrong: str, megatron_checkpoint: Megatron) -> None:
    source = registry.open_source(megatron_checkpoint(BY_FAMILY[right]))
    if wrong == right or (right, wrong) in SAME_IN_MEGATRON | NEARLY:
        checkpoint = delivery.interpret(source, Overrides(family=wrong))
        assert checkpoint.family.name == wrong
        if (right, wrong) in NEARLY:
            with pytest.raises(PlanError, match="attention_bias covers all four attention matrices"):
                delivery.plan(checkpoint, "hf")
        return
    with pytest.raises(ConfigError) as caught:
        delivery.interpret(source, Overrides(family=wrong))
    if ("megatron", wrong) in UNHELD:
        assert f"family {wrong} does not say how it is stored as megatron" in str(caught.value)
        return
    fields = {p.where for p in caught.value.problems if p.what == f"family {wrong} does not fit"}
    assert fields
    assert fields <= set(FIELDS)
    assert all(p.expected and p.got for p in caught.value.problems)
    assert all(" is from " in p.cause for p in caught.value.problems if p.where in fields)


@pytest.mark.parametrize("wrong", sorted(families()))
@pytest.mark.parametrize("right", sorted(families().keys() & hf_models.RECIPES))
def test_a_wrong_family_is_refused_for_hugging_face(right: str, wrong: str, hf_model: Hf) -> None:
    source = registry.open_source(hf_model(right))
    if wrong == right or (right, wrong) in ALIKE:
        assert delivery.interpret(source, Overrides(family=wrong)).family.name == wrong
        return
    with pytest.raises((ConfigError, PlanError)) as caught:
        delivery.interpret(source, Overrides(family=wrong))
    assert any(p.where or p.expected or p.what.startswith("axis ") for p in caught.value.problems)


def test_a_wrong_size_is_explained_by_the_fields_and_their_origins(megatron_checkpoint: Megatron) -> None:
    source = registry.open_source(megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32"))
    groups = source.metadata["num_query_groups"]
    with pytest.raises(PlanError) as caught:
        delivery.interpret(source, Overrides(settings={"num_query_groups": str(groups * 2)}))
    problem = next(p for p in caught.value.problems if "linear_qkv" in p.where)
    assert (
        problem.what == "the shape does not fit attn_q and attn_k and attn_v = "
        "layer (group [attn_q:head attn_k: attn_v:] half pair) embed"
    )
    assert f"num_key_value_heads={groups * 2} (--set num_query_groups, with " in problem.cause
    assert "hidden_size=" in problem.cause
    assert "hidden_size in" in problem.cause
    assert problem.fix == "correct it with --set FIELD=VALUE or --config"


def test_a_config_file_stands_in_for_args(megatron_checkpoint: Megatron, tmp_path: Path) -> None:
    """A Megatron checkpoint that lost its args is read with the exported model's config.json."""
    checkpoint = delivery.open(megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32"))
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "hf")
    bare = dataclasses.replace(checkpoint.source, metadata={}, metadata_at="")
    with pytest.raises(ConfigError, match="the checkpoint has no configuration"):
        delivery.interpret(bare, Overrides())
    said = delivery.overrides_from(config=tmp_path / "hf")
    again = delivery.interpret(bare, said)
    assert again.config == checkpoint.config
    assert again.described.origins["hidden_size"] == f"hidden_size in {tmp_path / 'hf' / 'config.json'}"
    assert delivery.plan(again, "hf").tensors == delivery.plan(checkpoint, "hf").tensors


def test_a_config_file_overrides_and_says_so(hf_model: Hf, tmp_path: Path) -> None:
    folder = hf_model("llama")
    config = hf_models.read_config(folder)
    config["rms_norm_eps"] = 0.125
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = delivery.open(folder, config=tmp_path)
    assert opened.config.norm_eps == 0.125
    origin = opened.described.origins["norm_eps"]
    assert origin.startswith(f"rms_norm_eps in {tmp_path / 'config.json'}; overrides 1e-06 (rms_norm_eps in ")


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
def test_both_generations_of_config_json_say_the_same(recipe: str, hf_model: Hf, tmp_path: Path) -> None:
    folder = shutil.copytree(hf_model(recipe), tmp_path / "old")
    new = delivery.open(folder).config
    assert delivery.open(hf_models.as_transformers4(folder)).config == new


@pytest.mark.parametrize("recipe", hf_models.RECIPES)
def test_what_is_written_reads_back(recipe: str, hf_model: Hf, tmp_path: Path) -> None:
    """Configuration -> config.json -> configuration, all fields."""
    checkpoint = delivery.open(hf_model(recipe))
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "again")
    again = delivery.open(tmp_path / "again")
    assert again.config == checkpoint.config
    old = hf_models.as_transformers4(tmp_path / "again")
    assert delivery.open(old).config == checkpoint.config


# what a GGUF has no key for, or holds in the tokenizer
NOT_IN_GGUF = {"dtype", "bos_token_id", "eos_token_id", "pad_token_id", "family", "sliding_window"}
ALSO_NOT: dict[str, set[str]] = {
    "llama3": {"rope_scaling"},
    "mistral": {"max_position_embeddings"},
}


@pytest.mark.parametrize("recipe", [r for r in hf_models.RECIPES if r not in hf_models.NOT_IN_LLAMA_CPP])
def test_gguf_carries_the_configuration(recipe: str, hf_model: Hf, tmp_path: Path) -> None:
    """Configuration -> GGUF -> configuration: the fields are the same, and so is the GGUF made of it."""
    checkpoint = delivery.open(hf_model(recipe))
    first = delivery.plan(checkpoint, "gguf", dtype="float32")
    delivery.run(first, tmp_path / "m.gguf")
    config = hf_model(recipe) if recipe == "llama3" else None
    again = delivery.open(tmp_path / "m.gguf", config=config, family=checkpoint.family.name)
    before, after = checkpoint.config.as_dict(), again.config.as_dict()
    lost = NOT_IN_GGUF | ALSO_NOT.get(recipe, set())
    for name in set(before) - lost:
        if isinstance(before[name], float):
            assert after[name] == pytest.approx(before[name], rel=1e-6), name
        else:
            assert after[name] == before[name], name
    second = delivery.plan(again, "gguf", dtype="float32")
    assert second.files[0].header == first.files[0].header


def test_planning_reads_no_tensor(hf_model: Hf, megatron_checkpoint: Megatron, tmp_path: Path) -> None:
    """Every byte of the tensors is gone from the files (holes of zeros stay): the plans are the same."""
    for root in (hf_model("qwen3"), megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32")):
        copy = shutil.copytree(root, tmp_path / root.name)
        plan = delivery.plan(delivery.open(copy), "gguf", quantize="q8_0")
        assert plan.extents
        for extent in plan.extents:
            if extent.at.wrapping == "raw":
                with plan.sources[extent.at.file].path.open("r+b") as file:
                    file.seek(extent.at.offset)
                    file.write(b"\xff" * extent.at.nbytes)
        assert delivery.plan(delivery.open(copy), "gguf", quantize="q8_0").digest == plan.digest


def test_making_a_plan_opens_no_weight_file(megatron_checkpoint: Megatron, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = delivery.open(megatron_checkpoint("mixtral-v019-dist-tp2ep2pp2-bf16"))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    for module, name in (("os", "pread"), ("os", "preadv"), ("os", "open"), ("builtins", "open")):
        monkeypatch.setattr(f"{module}.{name}", forbidden)
    for target, dtype in (("hf", "float32"), ("gguf", "float16")):
        assert delivery.plan(checkpoint, target, dtype=dtype).nbytes > 0


WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]


@pytest.mark.parametrize("recipe", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "window",
    [WINDOW | {"layer_types": MIXED}, WINDOW, WINDOW | {"max_window_layers": 0}],
    ids=["layer_types", "max_window_layers", "all layers"],
)
def test_a_window_in_some_layers_stays_in_hugging_faces_folders(
    hf_model: Hf, tmp_path: Path, recipe: str, window: dict[str, Any]
) -> None:
    """By transformers' logits beyond the window; the formats whose engines have no window refuse it by name."""
    folder = shutil.copytree(hf_model(recipe), tmp_path / "m")
    config = hf_models.read_config(folder)
    plain = {key: value for key, value in config.items() if key != "layer_types"}
    hf_models.write_config(folder, plain | window)
    checkpoint = delivery.open(folder)
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "hf", workers=1)
    tokens = np.random.default_rng(5).integers(0, 203, (1, 40))
    expected = transformers_logits(folder, tokens)
    np.testing.assert_array_equal(transformers_logits(tmp_path / "hf", tokens), expected)
    hf_models.write_config(folder, config)
    assert np.abs(transformers_logits(folder, tokens) - expected).max() > 1e-3  # the window matters
    with pytest.raises(PlanError, match=f"llama.cpp's {recipe} has no sliding window"):
        delivery.plan(checkpoint, "gguf")


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": MIXED},
        {"layer_types": MIXED, "use_sliding_window": True, "sliding_window": None},
        {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
    ],
    ids=["not used", "no size", "another kind"],
)
def test_layer_types_without_a_window_are_refused(hf_model: Hf, tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_models.read_config(hf_model("qwen2")) | changes))
    with pytest.raises(InputError, match="layer_types has"):
        delivery.open(hf_model("qwen2"), config=tmp_path)


def test_a_window_shorter_than_the_context_is_told(hf_model: Hf) -> None:
    plan = delivery.plan(delivery.open(hf_model("mistral")), "gguf")
    assert any("no sliding window: results differ" in warning for warning in plan.warnings)
    wide = delivery.plan(delivery.open(hf_model("mistral"), set={"sliding_window": "96"}), "gguf")
    assert not any("sliding window" in warning for warning in wide.warnings)


TOKENIZER = Path(__file__).parents[2] / "examples/tiny-kjv-tokenizer"


def test_a_tokenizer_of_another_size(megatron_checkpoint: Megatron) -> None:
    """Fewer tokens than rows: unused rows. More tokens than rows: refused for every target, which says why."""
    root = megatron_checkpoint("tiny-kjv")
    size = delivery.open(root).config.vocab_size
    plan = delivery.plan(delivery.open(root), "gguf", tokenizer=TOKENIZER)
    tokens = plan.facts["tokenizer.ggml.tokens"]
    assert len(tokens) == size
    assert not any(token.startswith("[PAD") for token in tokens)
    clipped = delivery.open(root, set={"vocab_size": str(size - 3)})
    for target in ("gguf", "hf", "trtllm"):
        with pytest.raises(TokenizerError) as caught:
            delivery.plan(clipped, target, tokenizer=TOKENIZER)
        problem = caught.value.problems[0]
        assert problem.what == "the tokenizer has 3 tokens beyond the model's embedding"
        assert str(TOKENIZER) in problem.where
        assert problem.expected == f"ids below {size - 3}, the rows of the embedding (vocab_size from --set)"
    fitting = delivery.plan(delivery.open(root), "hf", tokenizer=TOKENIZER)
    assert not any("tokenizer" in warning for warning in fitting.warnings)


def test_rows_without_a_token_are_padding(megatron_checkpoint: Megatron) -> None:
    """A checkpoint whose args do not know the tokenizer's size keeps its padded rows, as [PAD] tokens."""
    source = registry.open_source(megatron_checkpoint("tiny-kjv"))
    stored = source.tensors["", "embedding.word_embeddings.weight"].shape[0]
    lacking = dataclasses.replace(source, metadata={**source.metadata, "vocab_size": None, "padded_vocab_size": stored})
    checkpoint = delivery.interpret(lacking, Overrides())
    plan = delivery.plan(checkpoint, "gguf", tokenizer=TOKENIZER)
    tokens, types = plan.facts["tokenizer.ggml.tokens"], plan.facts["tokenizer.ggml.token_type"]
    size = source.metadata["vocab_size"]
    assert stored > size
    assert len(tokens) == stored
    assert tokens[size:] == [f"[PAD{n}]" for n in range(size, stored)]
    assert set(types[size:]) == {5}  # UNUSED
    assert any(warning.startswith("args do not say how many tokens the tokenizer has") for warning in plan.warnings)


ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 1 << 33, 10**30, 0.5, float("nan"), float("inf"), "", "8", "silu", [], [1], [None], {},
    {"a": 1}, [[0]], "x" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("format_name", ["megatron", "hf", "gguf"])
def test_any_values_give_a_configuration_or_an_error(
    format_name: str, seed: int, hf_model: Hf, megatron_checkpoint: Megatron, tmp_path: Path
) -> None:
    """Odd values under known keys: never another exception, never much memory."""
    roots = {
        "megatron": lambda: megatron_checkpoint(
            "deepseek-v019-dist-tp2pp2-fp32" if seed % 2 else "qwen3-v019-dist-tp2pp2-fp32"
        ),
        "hf": lambda: hf_model(("qwen3_moe", "deepseek_v3", "llama3", "gpt2")[seed % 4]),
    }
    if format_name == "gguf":
        delivery.run(delivery.plan(delivery.open(roots["hf"]()), "gguf"), tmp_path / "m.gguf")
        source = registry.open_source(tmp_path / "m.gguf")
    else:
        source = registry.open_source(roots[format_name]())
    rng = random.Random(f"{format_name}{seed}")
    reads = delivery.interpret(
        source, delivery.overrides_from(config=roots["hf"]() if format_name == "gguf" else None)
    ).rules.reading.fields
    known = {name for value in reads.values() for name in value.names}
    keys = sorted(key for key in source.metadata if key in known)
    assert len(keys) > 5
    refusals = 0
    for _ in range(60):
        changed = {key: rng.choice(ODD) for key in rng.sample(keys, rng.choice([1, 1, 2, 5]))}
        try:
            opened = delivery.interpret(
                dataclasses.replace(source, metadata={**source.metadata, **changed}), Overrides()
            )
            for target in ("hf", "gguf"):
                delivery.plan(opened, target)
        except (InputError, UsageError):
            refusals += 1
    assert refusals > 30
