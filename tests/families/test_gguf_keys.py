"""Every key that describes a model in a GGUF is there for an effect: another value moves llama.cpp's logits, or is
refused. Keys of which llama.cpp takes no notice are listed here, with what they are good for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import family_checks as checks
import numpy as np
import pytest
from family_cases import case

import crossdock
from crossdock.errors import CrossdockError
from oracles.gguf_patches import MOVES, STAYS, effects, without_effect
from oracles.transformers_engine import transformers_logits

# information: key without the architecture -> why the file has it all the same
EVERYWHERE = {"context_length": "how long a text the programs allow; learned positions have it as a size"}
INFORMATION: dict[str, dict[str, str]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"feed_forward_length": "the width of dense layers, which this architecture does not have"},
    "mixtral": {},
    "gemma2": {},
    "gpt2": {},
    "falcon": {"tensor_data_layout": "the order of fused heads; older programs read it"},
    "deepseek_v3": {"attention.value_length": "the latent width; value_length_mla is what is read"},
    "phi3": {
        "attention.sliding_window": "0 tells a Phi-4; [gguf.warn] says that the window is left out",
        "rope.scaling.original_context_length": "chooses between long and short factors, of which there are none",
    },
    "olmo3": {"rope.freq_base_swa": "[gguf.needs] wants it equal to freq_base"},
}
LEARNED = ("gpt2",)  # context_length is the size of the table of positions
YARN = ("llama", "qwen2", "qwen3_moe", "deepseek_v3", "cohere", "ernie4_5")
BETAS = {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}


@pytest.mark.parametrize("name", INFORMATION)
def test_a_key_moves_llama_cpp_s_logits_or_is_listed_as_information(name: str, tmp_path: Path) -> None:
    model = checks.export(case(name).write(tmp_path / "hf"), tmp_path / "m.gguf", "gguf", dtype="float32")
    found = effects(model, case(name).tokens, tmp_path)
    assert len(found) >= 7
    assert without_effect(found) == {*INFORMATION[name], *(() if name in LEARNED else EVERYWHERE)}


def scaled(name: str, folder: Path, **more: Any) -> Path:
    """The case with yarn, in a Hugging Face folder."""
    folder = case(name).write(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64} | more
    config |= {"rope_theta": 10000.0, "rope_scaling": yarn}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", YARN)
def test_yarn_s_keys_move_logits_but_for_the_betas_of_which_a_warning_speaks(name: str, tmp_path: Path) -> None:
    source = scaled(name, tmp_path / "hf", beta_fast=8.0, beta_slow=0.25)
    model = checks.export(source, tmp_path / "m.gguf", "gguf", dtype="float32")
    found = {key.partition(".")[2]: effect for key, effect in effects(model, case(name).tokens, tmp_path).items()}
    yarn = {key: effect for key, effect in found.items() if key.startswith("rope.scaling.")}
    assert {key for key, effect in yarn.items() if effect == STAYS} == BETAS
    assert {effect for key, effect in yarn.items() if key not in BETAS} == {MOVES}
    plan = crossdock.plan(crossdock.open(source), "gguf")
    assert [warning for warning in plan.warnings if "beta_fast and beta_slow" in warning]


@pytest.mark.parametrize("betas", [{}, {"beta_fast": 32, "beta_slow": 1}, {"beta_fast": 32.0}])
def test_usual_betas_are_not_warned_of(betas: dict[str, Any], tmp_path: Path) -> None:
    plan = crossdock.plan(crossdock.open(scaled("llama", tmp_path / "hf", **betas)), "gguf")
    assert not [warning for warning in plan.warnings if "beta" in warning]


def test_the_warning_is_true_and_verify_sees_it(tmp_path: Path) -> None:
    """With other betas llama.cpp is far from transformers, and `verify` by the engine says so."""
    tokens = np.arange(3, 63)[None] % 160
    for betas, right in (({}, True), ({"beta_fast": 2.0, "beta_slow": 0.1}, False)):
        source = scaled("llama", tmp_path / f"hf-{right}", **betas)
        model = checks.export(source, tmp_path / f"{right}.gguf", "gguf", dtype="float32")
        found = crossdock.verify(model, source, logits=tokens[0].tolist(), logits_engine="llama.cpp")
        assert found.logits is not None
        assert found.logits.ok is right
        near = crossdock.verify(model, source, logits=tokens[0].tolist(), reference="transformers")
        assert near.ok
        assert np.isfinite(transformers_logits(source, tokens)).all()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a range of yarn that is not rounded": ("llama", {"truncate": False}, "GGUF cannot store truncate = false"),
    "expert weights that do not sum to one": ("qwen3_moe", {"norm_topk_prob": False}, "always normalises"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model, change, sentence = REFUSED[name]
    of_rope = {key: value for key, value in change.items() if key == "truncate"}
    source = scaled(model, tmp_path / "hf", **of_rope)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {key: value for key, value in change.items() if key not in of_rope})
    )
    with pytest.raises(CrossdockError, match=sentence):
        crossdock.plan(crossdock.open(source), "gguf")
