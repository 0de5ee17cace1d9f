"""Plain torch DCP, in every form that torch 2.13 writes, against the same model as a Hugging Face folder."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Answer

from support.hf_models import make_hf


def save(folder: Path, state: dict[str, Any], serialization: str) -> None:
    """Write `state` with torch's own writer."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    form = SerializationFormat[serialization]
    dcp.save(state, storage_writer=FileSystemWriter(folder, serialization_format=form), no_dist=True)


@pytest.mark.parametrize("serialization", ["TORCH_SAVE", "SAFETENSORS"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_form_is_the_same_model(
    serialization: str, wrapped: bool, tmp_path: Path, crossdock: Callable[..., Answer]
) -> None:
    import torch
    from safetensors.torch import load_file

    model = make_hf("llama", tmp_path / "hf")
    weights = {k: v for file in sorted(model.glob("*.safetensors")) for k, v in load_file(file).items()}
    optimizer = {"state": {"lm_head.weight": {"exp_avg": torch.ones(3)}}}
    state: dict[str, Any] = {"app": {"model": weights, "optim": optimizer}} if wrapped else {**weights, "step": 5}
    save(tmp_path / "dcp", state, serialization)
    crossdock("export", tmp_path / "dcp", "--config", model, "--to", "hf", "-o", tmp_path / "out").ok()
    crossdock("export", model, "--to", "hf", "-o", tmp_path / "same").ok()
    assert filecmp.cmp(tmp_path / "out/model.safetensors", tmp_path / "same/model.safetensors", shallow=False)


def test_chunks_that_were_saved_transposed(tmp_path: Path, crossdock: Callable[..., Answer]) -> None:
    """torch keeps the strides of a tensor: a transposed weight is stored in another order than its shape says."""
    from safetensors.torch import load_file

    model = make_hf("llama", tmp_path / "hf")
    weights = {k: v for file in sorted(model.glob("*.safetensors")) for k, v in load_file(file).items()}
    turned = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in weights.items()}
    assert not turned["model.layers.0.mlp.down_proj.weight"].is_contiguous()
    save(tmp_path / "dcp", turned, "TORCH_SAVE")
    crossdock("export", tmp_path / "dcp", "--config", model, "--to", "hf", "-o", tmp_path / "out").ok()
    crossdock("export", model, "--to", "hf", "-o", tmp_path / "same").ok()
    assert filecmp.cmp(tmp_path / "out/model.safetensors", tmp_path / "same/model.safetensors", shallow=False)
