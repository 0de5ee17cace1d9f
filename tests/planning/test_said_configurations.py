"""A configuration in a file of its own (`--config`) is checked as the checkpoint's; texts are not numbers; the step of
the training is known where the checkpoint's folder says it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.errors import ConfigError, InputError
from support.hf_models import make_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf("llama", tmp_path_factory.mktemp("m"), dtype="float32")


def said(model: Path, folder: Path, **keys: Any) -> Path:
    config = json.loads((model / "config.json").read_text()) | keys
    (folder / "said.json").write_text(json.dumps(config))
    return folder / "said.json"


WRONG: dict[str, dict[str, Any]] = {
    "a value that changes the model": {"alibi": True},
    "an unknown key": {"attention_sink_size": 4},
    "a flag that is a text": {"attention_bias": "False"},
    "a number that is a text": {"num_hidden_layers": "2"},
    "a float that is a text": {"rope_theta": "10000"},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_said_configuration_is_refused_as_the_checkpoint_s_own(case: str, model: Path, tmp_path: Path) -> None:
    file = said(model, tmp_path, **WRONG[case])
    own = Path(shutil.copytree(model, tmp_path / "own"))
    shutil.copy(file, own / "config.json")
    for path, config in ((own, None), (model, file)):
        with pytest.raises(InputError) as error:
            crossdock.plan(crossdock.open(path, config=config), "gguf")
        assert isinstance(error.value, ConfigError)


def test_the_model_s_own_configuration_said_again_is_accepted(model: Path, tmp_path: Path) -> None:
    again = crossdock.open(model, config=said(model, tmp_path))
    assert again.config == crossdock.open(model).config


@pytest.mark.parametrize(
    ("name", "state", "step"),
    [
        ("checkpoint-500", None, 500),
        ("checkpoint-500", {"global_step": 600}, 600),
        ("last", {"global_step": 7}, 7),
        ("last", {"global_step": "7"}, None),
        ("last", [], None),
        ("last", None, None),
    ],
)
def test_the_step_of_a_trainer_s_checkpoint(
    name: str, state: Any, step: int | None, model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / name))
    if state is not None:
        (folder / "trainer_state.json").write_text(json.dumps(state))
    plan = crossdock.plan(crossdock.open(folder), "gguf")
    assert plan.iteration == step
