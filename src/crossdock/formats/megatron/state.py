"""A plain Megatron state dict: one file, .safetensors or torch.save, with the whole model (TP 1, PP 1) and no args.

This is what megatron/core/export takes (Megatron-LM d98e8a6): Megatron's names, per layer or stacked, and nothing
that says what the model is, so that the configuration comes from `--config`. Headers only, never tensor data.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from crossdock.errors import CrossdockError, FormatError, NotACheckpointError, UsageError
from crossdock.formats import safetensors
from crossdock.formats.fp8 import megatron as fp8
from crossdock.formats.hf.source import open_source as open_hugging_face
from crossdock.formats.megatron.args import OPTIMIZER
from crossdock.formats.megatron.dist import summary, without_prefix
from crossdock.formats.stored import Source, SourceFile
from crossdock.formats.weight_file import tensors_in
from crossdock.unpickle import printable

TORCH = (".pt", ".pth", ".ckpt", ".bin")
WRAPPERS = ("model", "state_dict", "module")  # dicts around the state dict
NAME = re.compile(r"(^|\.)(embedding\.word_embeddings\.weight|decoder\.(layers|final_layernorm)\.)")


def sniff(path: Path) -> bool:
    """A torch file, or a safetensors file in which a name is Megatron's. Never raises."""
    try:
        if not path.is_file():
            return False
        if path.suffix == ".safetensors":
            return any(NAME.search(name) for name in safetensors.read_header(path).tensors)
        return path.suffix in TORCH
    except (OSError, CrossdockError):
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open the file; one without Megatron's names is read as Hugging Face's.

    Raises NotACheckpointError, FormatError, UnsafePickleError, UsageError.
    """
    if iteration is not None:
        raise UsageError("a state dict has no iterations", where=str(path), fix="leave --iteration out")
    if not path.is_file():
        raise NotACheckpointError("a state dict is one file", where=str(path))
    found = {tensor.name: tensor for tensor in tensors_in(path, 0)}
    if not any(map(NAME.search, found)):  # everyday torch files, which have Hugging Face's names
        return open_hugging_face(path)
    skipped = {name: 1 for name in found if OPTIMIZER.search(name) or name.endswith(fp8.NAME)}
    weights = {name: tensor for name, tensor in found.items() if name not in skipped}
    for wrapper in WRAPPERS:
        inside = {name: tensor for name, tensor in weights.items() if name.startswith(f"{wrapper}.")}
        if inside and len(inside) < len(weights):  # a whole training state: only its model counts
            skipped |= dict.fromkeys(weights.keys() - inside.keys(), 1)
            weights = inside
            break
    tensors, prefix = without_prefix(weights, ("state_dict.", "module.", "model."))
    if not tensors:
        raise FormatError("the file has no tensors", where=str(path))
    notes = {"tensors": "a plain state dict"}
    if prefix:
        notes["prefix"] = f"{prefix} left out of every name"
    nbytes = sum(extent.nbytes for tensor in tensors.values() for extent in tensor.extents)
    return Source(
        format="megatron_state",
        root=path,
        files=(SourceFile.of(path),),
        tensors={("", name): tensor for name, tensor in tensors.items()},
        metadata={},
        metadata_at="",
        skipped=summary({printable(name): 1 for name in skipped}),
        skipped_bytes=max(0, path.stat().st_size - nbytes),
        scales=partial(fp8.of_state_dict, path, prefix),
        notes=notes,
    )
