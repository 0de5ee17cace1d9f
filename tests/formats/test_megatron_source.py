"""Megatron's torch_dist checkpoints as sources, which folder is meant, and everything that can be wrong with it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from megatron_sources import LLAMA, Checkpoint, copied

from conftest import CHECKPOINTS
from crossdock.errors import FormatError, InputError, NotACheckpointError, UsageError
from crossdock.formats import megatron
from crossdock.formats.dcp import source as dcp_folder
from crossdock.formats.megatron.dist import without_prefix
from oracles.megatron_state import global_state

DIST = [name for name in CHECKPOINTS if "-dist-" in name]
LEGACY = [name for name in CHECKPOINTS if "-legacy-" in name]


@pytest.mark.parametrize("name", DIST)
def test_torch_dist_has_the_tensors_that_torch_finds(name: str, megatron_checkpoint: Checkpoint) -> None:
    root = megatron_checkpoint(name)
    source = megatron.open_source(root)
    state, args = global_state(root)
    assert source.format == "megatron"
    assert source.metadata["num_layers"] == args.num_layers
    assert source.metadata["params_dtype"] == str(args.params_dtype).removeprefix("torch.")
    assert sum(math.prod(t.shape) for t in source.tensors.values()) == sum(t.size for t in state.values())
    for _, key in source.tensors:
        assert not key.startswith("optimizer")
        assert "_extra_state" not in key
    whole = next(iter(root.glob("iter_*")))
    size = sum(file.stat().st_size for file in whole.glob("*.distcp"))
    weights = sum(extent.nbytes for tensor in source.tensors.values() for extent in tensor.extents)
    assert weights + source.skipped_bytes == size
    assert any("_extra_state" in title for title in source.skipped)
    expected_at = "common.pt" if (whole / "common.pt").exists() else "common_state (__0_0.distcp)"
    assert source.metadata_at == f"args in {expected_at}"


@pytest.mark.parametrize("name", DIST + LEGACY)
def test_an_iteration_folder_is_as_good_as_its_root(name: str, megatron_checkpoint: Checkpoint) -> None:
    root = megatron_checkpoint(name)
    inner = next(root.glob("iter_*"))
    assert megatron.sniff(root)
    assert megatron.sniff(inner)
    number = int(inner.name.removeprefix("iter_"))
    by_folder, by_number = megatron.open_source(inner), megatron.open_source(root, iteration=number)
    assert by_folder.tensors == by_number.tensors == megatron.open_source(root).tensors
    assert by_folder.notes["iteration"] == str(number)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("soon", FormatError, "does not name an iteration"),
        ("", FormatError, "does not name an iteration"),
        ("-1", FormatError, "does not name an iteration"),
        ("99", NotACheckpointError, "iter_0000099, which"),
        ("release", NotACheckpointError, "release, which"),
        ("9" * 40, FormatError, "does not name an iteration"),
    ],
)
def test_trackers(
    text: str, error: type[InputError], message: str, tmp_path: Path, megatron_checkpoint: Checkpoint
) -> None:
    root = copied(megatron_checkpoint, LLAMA, tmp_path / "r")
    (root / "latest_checkpointed_iteration.txt").write_text(text)
    with pytest.raises(error, match=message) as caught:
        megatron.open_source(root)
    assert "--iteration" in caught.value.text()
    assert megatron.open_source(root, iteration=10).tensors


def test_choosing_an_iteration(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = copied(megatron_checkpoint, LLAMA, tmp_path / "r")
    with pytest.raises(UsageError, match="iteration 7 does not exist"):
        megatron.open_source(root, iteration=7)
    with pytest.raises(UsageError, match="contradicts the folder in the path"):
        megatron.open_source(root / "iter_0000010", iteration=7)
    (root / "latest_checkpointed_iteration.txt").unlink()
    assert "the only iteration" in megatron.open_source(root).notes["chosen"]
    shutil.copytree(root / "iter_0000010", root / "iter_0000020")
    with pytest.raises(UsageError, match="there are 2 iterations") as caught:
        megatron.open_source(root)
    assert "--iteration 20" in caught.value.text()
    (root / "iter_0000020").rename(root / "release")
    (root / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert megatron.open_source(root).tensors


def test_nemo_folders_and_prefixes(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    plain = megatron.open_source(megatron_checkpoint(LLAMA))
    (tmp_path / "nemo" / "context").mkdir(parents=True)
    shutil.copytree(megatron_checkpoint(LLAMA) / "iter_0000010", tmp_path / "nemo" / "weights")
    assert megatron.sniff(tmp_path / "nemo")
    assert megatron.open_source(tmp_path / "nemo").tensors == plain.tensors
    tensors = {f"module.{name}": tensor for (_, name), tensor in plain.tensors.items()}
    renamed, prefix = without_prefix(tensors)
    assert prefix == "module."
    assert renamed == {name: tensor for (_, name), tensor in plain.tensors.items()}


def damaged(root: Path, how: str) -> None:
    inner = root / "iter_0000010"
    if how == "no metadata.json":
        (inner / "metadata.json").unlink()
    elif how == "no .metadata":
        (inner / ".metadata").unlink()
    elif how == "only data":
        (inner / ".metadata").unlink()
        (inner / "metadata.json").unlink()
    elif how == "truncated":
        data = inner / "__1_0.distcp"
        data.write_bytes(data.read_bytes()[:-300])
    elif how == "data file gone":
        (inner / "__2_0.distcp").unlink()
    elif how == "zarr":
        (inner / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    elif how == "fsdp":
        (inner / "metadata.json").write_text('{"sharded_backend": "fsdp_dtensor"}')
    elif how == "no json":
        (inner / "metadata.json").write_text('{"sharded_backend"')
    elif how == "empty":
        shutil.rmtree(inner)
        inner.mkdir()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("no metadata.json", NotACheckpointError, r"metadata\.json is missing \(Megatron"),
        ("no .metadata", NotACheckpointError, r"\.metadata is missing"),
        ("only data", NotACheckpointError, r"\.metadata and metadata\.json is missing"),
        ("truncated", FormatError, "__1_0.distcp: the data file is truncated"),
        ("data file gone", FormatError, "'__2_0.distcp' is missing"),
        ("zarr", NotACheckpointError, "zarr checkpoint of megatron-core 0.15"),
        ("fsdp", NotACheckpointError, "unsupported backend"),
        ("no json", FormatError, "not valid JSON"),
        ("empty", NotACheckpointError, "no checkpoint found in this folder"),
    ],
)
def test_half_checkpoints(
    how: str, error: type[InputError], message: str, tmp_path: Path, megatron_checkpoint: Checkpoint
) -> None:
    root = copied(megatron_checkpoint, LLAMA, tmp_path / "r")
    damaged(root, how)
    assert megatron.sniff(root)
    with pytest.raises(error, match=message):
        megatron.open_source(root)


def test_without_args_there_is_no_configuration(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = copied(megatron_checkpoint, "llama-v016-dist-tp4-perlayer-fp32", tmp_path / "r")
    torch.save({"content_metadata": {}}, root / "iter_0000010/common.pt")
    source = megatron.open_source(root)
    assert (source.metadata, source.metadata_at) == ({}, "args in common.pt")
    (root / "iter_0000010/common.pt").unlink()
    assert "missing" in megatron.open_source(root).metadata_at


def test_sniffing_never_raises(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text("[" * 100_000)
    (tmp_path / "file").write_bytes(b"\0")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (
        tmp_path,
        tmp_path / "file",
        tmp_path / "loop",
        tmp_path / "none",
        Path("a\0b"),
        tmp_path / ("x" * 5000),
    ):
        assert not megatron.sniff(path)
        assert not dcp_folder.sniff(path)
