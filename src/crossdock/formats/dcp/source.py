"""A plain PyTorch distributed checkpoint (DCP) folder whose keys are a model's own names, as FSDP training saves it.

Reads `.metadata` and nothing else; optimizer state is left out before anything is made of it. A DCP folder carries no
configuration. Facts from torch 2.13 (`torch/distributed/checkpoint/`) and the key styles of its FSDP examples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from crossdock.errors import FormatError, NotACheckpointError, UsageError
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.safetensors import read_header
from crossdock.formats.stored import Extent, Source, StoredTensor
from crossdock.unpickle import printable

MAX_ENTRIES: Final = 200_000
WRAPPERS: Final = ("app.", "state_dict.", "module.", "_fsdp_wrapped_module.", "_orig_mod.")
INFIX: Final = re.compile(r"\b(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
ROOTS: Final = ("model.", "transformer.")  # what Hugging Face's decoders put before their layers
OTHER: Final = re.compile(
    r"(app\.|state_dict\.)?(optim|optimizers?|optimizer_states?|lr_schedulers?|schedulers?|dataloader|train_state"
    r"|rng_state)([./]|\Z)"
)
MOMENTS: Final = re.compile(r"\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|step)\Z")
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
    """Open a DCP folder. Names come out as the model gave them, without what wrappers put around them.

    Raises NotACheckpointError (unfinished, or Megatron's), UsageError, FormatError, UnsafePickleError.
    """
    if iteration is not None:
        raise UsageError("--iteration is for Megatron's folders", where=str(path), fix="give the iteration's folder")
    if not (path / ".metadata").is_file():
        raise NotACheckpointError(
            "there is no .metadata file, which is written last",
            where=str(path),
            cause="an unfinished save or copy (hidden files are easily left behind)",
            fix="copy the whole folder again, or use an earlier save",
        )
    meta = dcp.read_metadata(path, is_weight)
    if any(MEGATRON.match(name) for name in meta.tensors):
        raise NotACheckpointError(
            "a .metadata with Megatron's names, but no metadata.json, which Megatron writes last",
            where=str(path),
            cause="an unfinished save, or --ckpt-format torch_dcp or fsdp_dtensor, which crossdock does not read",
            fix="use an earlier iteration, or save again with --ckpt-format torch_dist",
        )
    stored = dcp.stored_tensors(meta, path)
    tensors, prefix = _renamed(stored.tensors, path, stored)
    if not tensors:
        raise FormatError("there are no model weights in this checkpoint", where=str(path))
    notes = {"serialization": "safetensors" if meta.ends else "torch.save", "files": str(len(stored.files))}
    if prefix:
        notes["prefix"] = f"{prefix} left out of the names"
    return Source(
        format="dcp",
        root=path,
        files=stored.files,
        tensors={("", name): tensor for name, tensor in tensors.items()},
        metadata={},
        metadata_at="",
        skipped=_summary(stored.skipped),
        skipped_bytes=stored.skipped_bytes,
        notes=notes,
        layout_of="hf",
    )


def is_weight(name: str) -> bool:
    """False for the state of optimizers, schedules, data loaders and random number generators."""
    return not OTHER.match(name) and not MOMENTS.search(name)


def wrapper_prefix(names: list[str]) -> str:
    """What wrappers put before every name: "app.model." of "app.model.model.layers.0...", "" when nothing.

    `model.` is also how Hugging Face's own names begin, so it goes only where such a name remains.
    """
    prefix = ""
    while names:
        found = next((w for w in WRAPPERS if all(name.startswith(w) for name in names)), "")
        if not found and all(name.startswith("model.") for name in names):
            found = "model." if any(name.startswith(tuple("model." + r for r in ROOTS)) for name in names) else ""
        if not found:
            break
        prefix += found
        names = [name[len(found) :] for name in names]
    return prefix


def _renamed(
    tensors: Mapping[str, StoredTensor], path: Path, stored: dcp.DcpStored
) -> tuple[dict[str, StoredTensor], str]:
    plain = {name: INFIX.sub("", name) for name in tensors}
    prefix = wrapper_prefix(list(plain.values()))
    out: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = plain[name][len(prefix) :]
        if new in out:
            raise FormatError("two tensors have one name without their wrappers", where=f"{path}: {printable(new)}")
        if new != name:
            tensor = replace(tensor, name=new, extents=_located(name, tensor.extents, stored))
        out[new] = tensor
    return out, prefix


def _located(name: str, extents: tuple[Extent, ...], stored: dcp.DcpStored) -> tuple[Extent, ...]:
    """Extents that can be read without the old name: a safetensors blob is looked into by name."""
    out = []
    for extent in extents:
        if extent.wrapping == "safetensors":
            place = read_header(stored.files[extent.file].path, extent.offset, extent.nbytes).tensors[name]
            extent = replace(extent, offset=place.begin, nbytes=place.end - place.begin, wrapping="raw")
        out.append(extent)
    return tuple(out)


def _summary(skipped: Mapping[str, int]) -> dict[str, str]:
    counts = Counter("optimizer.*" if MOMENTS.search(n) else printable(re.split(r"[./]", n)[0]) + ".*" for n in skipped)
    return {f"{kind} ({n:,} entries)": "training state, not weights" for kind, n in counts.items()}


def _has_data(path: Path) -> bool:
    return any(entry.suffix == ".distcp" for entry in islice(path.iterdir(), MAX_ENTRIES))
