"""What programs put around a model's names is taken off alike in every kind of file; transformers' logits as the oracle
are in `tests/interop`: here every tensor has to be the one that was saved under its plain name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from safetensors.torch import load_file, save_file

import crossdock
from crossdock.errors import FormatError, PlanError
from support.hf_models import make_hf

State = dict[str, Any]


def under(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[State], State]] = {
    "plain": under(""),
    "DDP": under("module."),
    "compiled": under("_orig_mod."),
    "compiled DDP": under("module._orig_mod."),
    "FSDP": lambda s: {f"_fsdp_wrapped_module.{n}".replace("layers.0.", "layers.0._fsdp_wrapped_module."): t
                       for n, t in s.items()},
    "checkpointed": lambda s: {n.replace("mlp.", "_checkpoint_wrapped_module.mlp."): t for n, t in s.items()},
    "Lightning": under("state_dict.model."),
    "Composer": under("state.model."),
    "PEFT": under("base_model.model."),
    "text part": under("language_model."),
    "verl actor": under("actor.module."),
    "own": under("my_model."),
    "base class": lambda s: {n.removeprefix("model."): t for n, t in s.items()},
    "base class of DDP": lambda s: {"module." + n.removeprefix("model."): t for n, t in s.items()},
    "with strays": lambda s: {**under("model.")(s), "step": torch.tensor(3), "rng": torch.zeros(8, dtype=torch.uint8)},
    "strays alone": lambda s: {**s, "step": torch.tensor(3.0)},
}  # fmt: skip
FORMS = ("safetensors", "bin", "pt", "dcp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf("llama", tmp_path_factory.mktemp("m"), dtype="float32", tie_word_embeddings=True)


def saved(state: State, model: Path, folder: Path, form: str) -> Path:
    """`state` in a file or folder of that form, with the model's config.json beside it where the form has one."""
    folder.mkdir()
    if form in ("safetensors", "bin"):
        (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    if form == "safetensors":
        save_file(state, folder / "model.safetensors")
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "pt":
        torch.save(state, folder / "checkpoint.pt")
        return folder / "checkpoint.pt"
    else:
        torch_dcp.save(state, checkpoint_id=str(folder / "dcp"), no_dist=True)
        return folder / "dcp"
    return folder


def opened(path: Path, model: Path, form: str) -> crossdock.Checkpoint:
    return crossdock.open(path, config=None if form in ("safetensors", "bin") else model)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", sorted(WRAPPED))
def test_every_wrapper_in_every_form(model: Path, tmp_path: Path, kind: str, form: str) -> None:
    truth = load_file(model / "model.safetensors")
    path = saved(WRAPPED[kind](truth), model, tmp_path / "x", form)
    checkpoint = opened(path, model, form)
    assert {name for _, name in checkpoint.source.tensors} == truth.keys()
    crossdock.run(crossdock.plan(checkpoint, "hf"), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == truth.keys()
    assert all(np.array_equal(written[name].numpy(), truth[name].numpy()) for name in truth)
    assert ("step" in checkpoint.unread) == ("strays" in kind)


def test_a_training_state_is_not_weights(model: Path, tmp_path: Path) -> None:
    """Optimizer, schedule and the like beside the model in one torch file, a list among them."""
    truth = load_file(model / "model.safetensors")
    moments = {"state": {0: {"exp_avg": torch.zeros(4), "step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model": truth, "optimizer": moments, "epoch": 3, "loss": [0.1]}, tmp_path / "last.ckpt")
    checkpoint = crossdock.open(tmp_path / "last.ckpt", config=model)
    assert {name for _, name in checkpoint.source.tensors} == truth.keys()
    assert any(name.startswith("optimizer.*") for name in checkpoint.unread)


def test_weights_beside_the_model_are_not_left_out_silently(model: Path, tmp_path: Path) -> None:
    truth = load_file(model / "model.safetensors")
    state = {**under("model.")(truth), "value_head.weight": torch.zeros(1, 64)}
    path = saved(state, model, tmp_path / "x", "pt")
    with pytest.raises(PlanError, match="unmapped tensor") as caught:
        opened(path, model, "pt")
    assert [problem.where for problem in caught.value.problems] == ["value_head.weight"]


def test_two_copies_of_one_model_are_refused(model: Path, tmp_path: Path) -> None:
    truth = load_file(model / "model.safetensors")
    state = {**truth, **under("_orig_mod.")({name: tensor.clone() for name, tensor in truth.items()})}
    path = saved(state, model, tmp_path / "x", "pt")
    with pytest.raises(FormatError, match="two tensors have the same name"):
        opened(path, model, "pt")


def test_a_whole_module_that_was_pickled_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(FormatError, match="not a dict of tensors") as caught:
        crossdock.open(tmp_path / "model.pt")
    assert "state_dict()" in caught.value.problems[0].fix


def test_one_cause_is_one_problem(model: Path, tmp_path: Path) -> None:
    """Layers that the configuration does not have, and a tensor of another family in every layer."""
    truth = load_file(model / "model.safetensors")
    extra = {f"model.layers.{n}.self_attn.gate.weight": torch.zeros(2, 2) for n in range(3)}
    path = saved({**truth, **extra}, model, tmp_path / "x", "safetensors")
    with pytest.raises(PlanError) as caught:
        crossdock.open(path)
    (problem,) = caught.value.problems
    assert problem.what == "3 unmapped tensors: no layout rule uses them, so they would be dropped"
    assert problem.where == "model.layers.{0-2}.self_attn.gate.weight"
    config = json.loads((model / "config.json").read_text())
    path = saved(truth, model, tmp_path / "y", "safetensors")
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "layer_types": None}))
    with pytest.raises(PlanError) as caught:
        crossdock.open(path)
    (problem,) = caught.value.problems
    assert problem.what == "9 tensors are of layers or experts that the configuration does not have"
