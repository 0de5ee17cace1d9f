"""Plain DCP folders, as FSDP training saves them, made by torch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from megatron_sources import LLAMA, Checkpoint, copied, read_array
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

from crossdock.errors import NotACheckpointError, UsageError
from crossdock.formats import megatron
from crossdock.formats.dcp import source as dcp_folder
from crossdock.planning.tensors.wrappers import unwrapped

STATE = {
    "model.embed_tokens.weight": torch.arange(12.0).reshape(4, 3),
    "model.layers.0.mlp.up_proj.weight": torch.ones(2, 3),
    "model.norm.weight": torch.ones(3),
}


@pytest.mark.parametrize("form", list(SerializationFormat))
@pytest.mark.parametrize(
    ("wrapped", "tied"),
    [
        (lambda s: dict(s), True),
        (
            lambda s: {
                "model": s,
                "optimizer": {"state": {"w": {"exp_avg": torch.zeros(9)}}},
                "lr_scheduler": {"n": 1},
            },
            True,
        ),
        (lambda s: {"app": {"model": s, "optim": {"state.model.norm.weight.exp_avg": torch.zeros(9)}}}, False),
        (
            lambda s: {
                "model": {
                    f"_orig_mod.{k}".replace("layers.0", "layers.0._fsdp_wrapped_module"): t for k, t in s.items()
                }
            },
            False,
        ),
        (lambda s: {f"module.{k}": t for k, t in s.items()}, False),
    ],
)
def test_plain_dcp_folders(wrapped: Any, tied: bool, form: SerializationFormat, tmp_path: Path) -> None:
    state = STATE if tied else STATE | {"lm_head.weight": torch.zeros(4, 3)}
    writer = FileSystemWriter(tmp_path / "step", serialization_format=form)
    torch_dcp.save(wrapped(state), storage_writer=writer, no_dist=True)
    assert dcp_folder.sniff(tmp_path / "step")
    assert not megatron.sniff(tmp_path / "step")
    source = dcp_folder.open_source(tmp_path / "step")
    assert source.format == "dcp"
    assert source.metadata == {}
    source = unwrapped(source, "hf")
    assert {name: tensor.shape for (_, name), tensor in source.tensors.items()} == {
        k: tuple(t.shape) for k, t in state.items()
    }
    assert not any(name.startswith("opt") for _, name in source.tensors)
    stored = source.tensors["", "model.embed_tokens.weight"]
    assert stored.name == "model.embed_tokens.weight"
    if stored.extents[0].wrapping != "safetensors":
        np.testing.assert_array_equal(read_array(source, "", stored.name), STATE[stored.name].numpy())


def test_plain_dcp_that_is_not_plain(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = copied(megatron_checkpoint, LLAMA, tmp_path / "r")
    (root / "iter_0000010/metadata.json").unlink()
    assert dcp_folder.sniff(root / "iter_0000010")
    with pytest.raises(NotACheckpointError, match=r"Megatron's names, but no metadata\.json"):
        dcp_folder.open_source(root / "iter_0000010")
    (root / "iter_0000010/.metadata").unlink()
    assert dcp_folder.sniff(root / "iter_0000010")
    with pytest.raises(NotACheckpointError, match=r"\.metadata is missing"):
        dcp_folder.open_source(root / "iter_0000010")
    with pytest.raises(UsageError, match="--iteration"):
        dcp_folder.open_source(root / "iter_0000010", iteration=3)
