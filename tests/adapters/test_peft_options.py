"""Options of peft: each is obeyed or refused by name, and what does not fit the base or itself is an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import crossdock
from crossdock.errors import ConfigError, FormatError, InputError, NotACheckpointError, PlanError, UsageError
from crossdock.formats.hf.adapter_config import OBEYED, REFUSED, WITHOUT_EFFECT
from support.peft_adapters import adapted, edited, logits_of


def test_every_option_of_peft_is_judged() -> None:
    """A field that a new version of peft adds fails here until crossdock obeys or refuses it."""
    import peft

    fields = {one.name for one in dataclasses.fields(peft.LoraConfig)}
    assert fields == OBEYED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    assert len(OBEYED) + len(WITHOUT_EFFECT) + len(REFUSED) == len(fields)


@pytest.fixture
def adapter(adapter_bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A plain adapter of the llama."""
    return adapted(adapter_bases("llama"), tmp_path / "adapter", target_modules=["q_proj", "down_proj"])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_obeyed_is_refused_by_name(name: str, adapter: Path, adapter_bases: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*is not obeyed"):
        crossdock.open(edited(adapter, **{name: [1] if name.endswith("s") else {"a": 1}}), base=adapter_bases("llama"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "not a LoRA adapter"),
    "an option of the future": ({"use_magic": True}, "use_magic: an option of PEFT that crossdock does not know"),
    "an initialisation that changes the base": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    "no rank": ({"r": 0}, "r: not a rank"),
    "an alpha that is a text": ({"lora_alpha": "8"}, "lora_alpha: not a number"),
    "a pattern without end": ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern: a pattern that could take long"),
    "a pattern that is broken": ({"rank_pattern": {"(": 3}}, "rank_pattern: a pattern that could take long"),
    "ranks that are not numbers": ({"rank_pattern": ["q_proj"]}, "rank_pattern: not a table"),
    "a bias of another kind": ({"bias": "some"}, "bias: not one of"),
    "layers that are not numbers": ({"layers_to_transform": ["1"]}, "layers_to_transform: not numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_peft_would_not_write(name: str, adapter: Path, adapter_bases: Callable[[str], Path]) -> None:
    keys, sentence = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        crossdock.open(edited(adapter, **keys), base=adapter_bases("llama"))
    assert sentence in str(caught.value)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "another rank": ({"r": 4}, "another rank than the configuration states"),
    "a module that is not named": ({"target_modules": ["q_proj"]}, "PEFT would ignore the pair"),
    "a layer that is not named": ({"layers_to_transform": [0]}, "PEFT would ignore the pair"),
    "DoRA without magnitudes": ({"use_dora": True}, "use_dora and lora_magnitude_vector contradict"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_tensors_that_contradict_the_options(name: str, adapter: Path, adapter_bases: Callable[[str], Path]) -> None:
    keys, sentence = UNFIT[name]
    with pytest.raises(FormatError, match=sentence):
        crossdock.open(edited(adapter, **keys), base=adapter_bases("llama"))


def test_an_adapter_of_another_model(adapter: Path, adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    config = json.loads((adapter_bases("llama") / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((adapter_bases("tied") / "model.safetensors").read_bytes())
    (other / "config.json").write_text(json.dumps(config | {"attention_bias": False, "tie_word_embeddings": True}))
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "down_proj.lora_A" in name)
    save_file({**tensors, name: np.ones((3, 20), np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(PlanError, match="the adapter does not fit its base") as caught:
        crossdock.open(adapter, base=other)
    assert caught.value.problems[0].check == "adapter-base"
    with pytest.raises(PlanError, match=r"the base has no model\.layers\.0\.self_attn\.q_proj\.weight"):
        crossdock.open(adapter, base=adapter_bases("gpt2"))


TIED: dict[str, dict[str, Any]] = {
    "a pair on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "a new embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "a new head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", TIED)
def test_a_tied_matrix_is_not_changed(name: str, adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    """peft's merge changes the matrix in both of its places, of which one was trained."""
    adapter = adapted(adapter_bases("tied"), tmp_path / "adapter", **TIED[name])
    with pytest.raises(PlanError, match="the embedding of its base is the output matrix too"):
        crossdock.open(adapter, base=adapter_bases("tied"))


def test_an_adapter_is_not_a_model(adapter: Path, adapter_bases: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="this is an adapter, not a model") as caught:
        crossdock.open(adapter)
    assert str(adapter_bases("llama")) in caught.value.problems[0].fix
    with pytest.raises(NotACheckpointError, match="this is an adapter, not a model"):
        crossdock.open(adapter, format="hf")
    with pytest.raises(PlanError, match="the source is not an adapter"):
        crossdock.open(adapter_bases("llama"), base=adapter_bases("llama"))


def test_an_adapter_without_its_weights(adapter: Path, adapter_bases: Callable[[str], Path]) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(NotACheckpointError, match=r"adapter_config\.json without adapter_model\.safetensors"):
        crossdock.open(adapter, base=adapter_bases("llama"))


def test_half_a_pair(adapter: Path, adapter_bases: Callable[[str], Path]) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if "lora_B" in name)
    save_file({name: values for name, values in tensors.items() if name != gone}, file)
    with pytest.raises(InputError, match=r"its other half lora_B\.weight is missing"):
        crossdock.open(adapter, base=adapter_bases("llama"))


def test_an_adapter_that_was_not_trained(adapter_bases: Callable[[str], Path], tmp_path: Path) -> None:
    """B is zero before the first step: the output would be the base under another name."""
    adapter = adapted(adapter_bases("llama"), tmp_path / "adapter", touch=False, target_modules=["q_proj", "v_proj"])
    with pytest.raises(PlanError, match="adds only zeros") as caught:
        crossdock.export(adapter, tmp_path / "hf", "hf", base=adapter_bases("llama"))
    assert caught.value.problems[0].check == "lora-noop"
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pairs_in_half_precision(
    dtype: str, adapter: Path, adapter_bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Read as they are stored; .bin as well as safetensors."""
    import torch
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({name: one.to(getattr(torch, dtype)) for name, one in tensors.items()}, adapter / "adapter_model.bin")
    crossdock.export(adapter, tmp_path / "hf", "hf", base=adapter_bases("llama"))
    wanted = logits_of(adapter_bases("llama"), adapter)
    assert np.abs(logits_of(tmp_path / "hf") - wanted).max() < 1e-6 * np.abs(wanted).max()
