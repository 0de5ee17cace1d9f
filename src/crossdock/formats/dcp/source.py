"""A plain PyTorch distributed checkpoint (DCP) folder whose keys are a model's own names, as FSDP training saves it.

Reads `.metadata` and nothing else; optimizer state is left out before anything is made of it. A DCP folder carries no
configuration. Facts from torch 2.13 (`torch/distributed/checkpoint/`) and the key styles of its FSDP examples.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from crossdock.errors import FormatError, NotACheckpointError, UsageError
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.hf.source import step_of
from crossdock.formats.safetensors import SafetensorsHeader, read_header
from crossdock.formats.stored import Extent, Source
from crossdock.formats.weight_file import is_weight, training_state

MAX_ENTRIES: Final = 200_000
MEGATRON: Final = re.compile(r"(module\.|model\.)*(decoder\.layers\.|embedding\.word_embeddings\.)")


def sniff(path: Path) -> bool:
    """True for a folder with a `.metadata` file, or `.distcp` files, and no metadata.json. Never raises."""
    try:
        if not path.is_dir() or (path / "metadata.json").exists():
            return False
        return (path / ".metadata").is_file() or _has_data(path)
    except (OSError, ValueError):
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open a DCP folder. Names come out as they were saved: `planning.tensors.wrappers` takes off what is around them.

    Raises NotACheckpointError (unfinished, or Megatron's), UsageError, FormatError, UnsafePickleError.
    """
    if iteration is not None:
        raise UsageError("--iteration is for Megatron's folders", where=str(path), fix="pass the iteration's folder")
    if not (path / ".metadata").is_file():
        raise NotACheckpointError(
            ".metadata is missing (it is written last)",
            where=str(path),
            cause="an unfinished save or copy (hidden files are easily left behind)",
            fix="copy the whole folder again, or use an earlier save",
        )
    meta = dcp.read_metadata(path, is_weight)
    if any(MEGATRON.match(name) for name in meta.tensors):
        raise NotACheckpointError(
            "a .metadata with Megatron's names, but no metadata.json, which Megatron writes last",
            where=str(path),
            cause="an unfinished save, or --ckpt-format torch_dcp or fsdp_dtensor",
            fix="pass the run's folder, or --format megatron; of an unfinished save use an earlier iteration",
        )
    stored = dcp.stored_tensors(meta, path)
    if not stored.tensors:
        raise FormatError("the checkpoint has no model weights", where=str(path))
    headers: dict[tuple[int, int], SafetensorsHeader] = {}
    tensors = {
        name: replace(tensor, extents=_located(name, tensor.extents, stored, headers))
        for name, tensor in stored.tensors.items()
    }
    notes = {"serialization": "safetensors" if meta.ends else "torch.save", "files": str(len(stored.files))}
    notes |= step_of(path) or step_of(path.absolute().parent)  # accelerate saves pytorch_model_fsdp_0 in checkpoint-N
    return Source(
        format="dcp",
        root=path,
        files=stored.files,
        tensors={("", name): tensor for name, tensor in tensors.items()},
        metadata={},
        metadata_at="",
        skipped=training_state(stored.skipped),
        skipped_bytes=stored.skipped_bytes,
        notes=notes,
        layout_of="hf",
    )


def _located(
    name: str,
    extents: tuple[Extent, ...],
    stored: dcp.DcpStored,
    headers: dict[tuple[int, int], SafetensorsHeader],
) -> tuple[Extent, ...]:
    """Extents that can be read under another name, though a safetensors blob is looked into by name."""
    out = []
    for extent in extents:
        if extent.wrapping == "safetensors":
            at = extent.file, extent.offset
            if at not in headers:
                headers[at] = read_header(stored.files[extent.file].path, extent.offset, extent.nbytes)
            place = headers[at].tensors[name]
            extent = replace(extent, offset=place.begin, nbytes=place.end - place.begin, wrapping="raw")
        out.append(extent)
    return tuple(out)


def _has_data(path: Path) -> bool:
    return any(entry.suffix == ".distcp" for entry in islice(path.iterdir(), MAX_ENTRIES))
