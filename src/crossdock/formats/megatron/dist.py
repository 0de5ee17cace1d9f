"""Megatron's DCP folders (torch_dist, fsdp_dtensor, torch_dcp): Megatron's keys, with args beside the weights.

Reads `.metadata`, metadata.json and the args; optimizer state and extra state are left out before anything is
made of them. Facts from megatron-core 0.11 to 0.19.2 (`dist_checkpointing/strategies/torch.py`, `serialization.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from crossdock.errors import FormatError, NotACheckpointError
from crossdock.formats.companions import found_in
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.fp8 import megatron as fp8
from crossdock.formats.megatron.args import OPTIMIZER, is_weight, plain_args, run_notes
from crossdock.formats.megatron.bridge import FILE as RUN_CONFIG
from crossdock.formats.megatron.bridge import read_run_config
from crossdock.formats.megatron.hybrid import UNSCALED, Fold, as_gpt, stack_of, stack_of_names, stacked_args
from crossdock.formats.megatron.lora import adapter_of, is_adapter
from crossdock.formats.megatron.masters.dist import of_dist
from crossdock.formats.megatron.other_models import refuse_other_models
from crossdock.formats.megatron.root import Folder
from crossdock.formats.megatron.towers import NOTICE, REASON, TEXT, is_beside_text
from crossdock.formats.stored import Masters, Source, StoredTensor
from crossdock.io.files import reading
from crossdock.torchfile import open_torch, read_object
from crossdock.unpickle import describe, printable

TOKENIZER = "tokenizer"  # folder in the iteration's: --save-tokenizer-assets, Megatron-Bridge
PREFIXES = ("module.", "model.")  # NeMo, FSDP: put before every key
REASONS: Mapping[str, str] = {
    "optimizer.*": "optimizer state",
    "*._extra_state": "state of the training kernels (fp8 scales), not weights",
    "rng_state": "random number generators",
    "rerun_state_machine_state": "state of Megatron's fault detection",
    "args": "read as the configuration",
    "iteration": "shown as a note",
    "checkpoint_version": "shown as a note",
    "common_state": "args and iteration, read as the configuration",
    "opt_param_scheduler": "learning rate schedule",
}


def open_dist(root: Path, folder: Folder) -> Source:
    """Open a torch_dist folder. Raises NotACheckpointError, FormatError, UnsafePickleError, ConfigError."""
    path = folder.path
    meta = dcp.read_metadata(path, is_weight)
    common, common_at = _objects(path, meta) if folder.kind == "dcp" else _common(path, meta)
    stored = dcp.stored_tensors(meta, path)
    args = plain_args(common, common_at)
    notes = dict(folder.notes) | run_notes(common, args)
    if folder.kind == "dcp":
        notes["layout"] = "fsdp_dtensor or torch_dcp"
    elif "megatron-core" not in notes:
        notes["megatron-core"] = "0.18 or older" if (path / "common.pt").is_file() else "0.19 or newer"
    args_at, bridge = f"args in {common_at}", not args and (path / RUN_CONFIG).is_file()
    if bridge:
        args, args_at = read_run_config(path / RUN_CONFIG), RUN_CONFIG
        notes |= {"layout": "Megatron-Bridge"} | run_notes(common, args)
    notes["serialization"] = "safetensors" if meta.ends else "torch.save"
    notes["files"] = str(len(stored.files))
    tensors, prefix = without_prefix(stored.tensors)
    if prefix:
        notes["prefix"] = f"{prefix} left out of every name"
    towers = [name for name in tensors if not name.startswith(TEXT)] if is_beside_text(tensors) else []
    if is_beside_text(tensors):
        tensors, text = without_prefix({name: t for name, t in tensors.items() if name.startswith(TEXT)}, (TEXT,))
        prefix += text
    if not tensors:
        raise FormatError("the checkpoint has no model weights", where=str(path))
    adapter = adapter_of(tensors, path) if is_adapter(tensors) else None
    refuse_other_models(() if adapter is not None else tensors, str(path))
    states = tuple((name, place) for name, place in meta.objects.items() if fp8.NAME in name)
    scales = partial(fp8.of_objects, path, states, prefix, {name: t.shape for name, t in tensors.items()})
    masters: Callable[[], Masters] = partial(of_dist, path, prefix)
    keyed = {("", name): tensor for name, tensor in tensors.items()}
    stack = stack_of(args, args_at) or stack_of_names(tensors, args, args_at)
    notices: tuple[str, ...] = ()
    if stack is not None and stack.folds:
        fold = Fold(stack)
        notes["names"] = f"a HybridModel of {len(stack.letters)} layers ({stack.letters}), shown as a GPTModel"
        keyed, scales = fold.tensors(keyed), partial(fold.scales, scales)
        args = as_gpt(args, stack) if args else args
        masters = partial(fold.masters, masters)
        notices = (UNSCALED,) if args.get("use_rope_scaling") else ()
    elif stack is not None and args:
        args = stacked_args(args, stack)
    skipped = summary(stored.skipped)
    if towers:
        skipped[f"{towers[0].partition('.')[0]}.* and others ({len(towers)} tensors)"] = REASON
        notices = (*notices, NOTICE)
    return Source(
        format="megatron",
        root=root,
        files=stored.files,
        tensors=keyed,
        metadata=args,
        metadata_at=args_at,
        skipped=skipped,
        skipped_bytes=stored.skipped_bytes,
        companion_files=tuple(found_in(path / TOKENIZER)),
        scales=scales,
        masters=masters,
        notes=notes,
        notices=notices,
        aliased=bridge,
        adapter=adapter,
    )


def without_prefix(
    tensors: Mapping[str, StoredTensor], prefixes: tuple[str, ...] = PREFIXES
) -> tuple[dict[str, StoredTensor], str]:
    """`tensors` under names without one of `prefixes`, when all have it; and what was left out."""
    removed = ""
    while tensors:
        prefix = next((p for p in prefixes if all(name.startswith(p) for name in tensors)), "")
        if not prefix:
            break
        removed += prefix
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    if removed and any(extent.wrapping == "safetensors" for t in tensors.values() for extent in t.extents):
        raise FormatError(
            f"names with the prefix {removed} in safetensors blobs, which no version of Megatron writes",
            fix="save the checkpoint with torch.save serialization",
        )
    return {name: replace(tensor, name=name) for name, tensor in tensors.items()}, removed


def summary(skipped: Mapping[str, int]) -> dict[str, str]:
    """Names that were left out, one line per kind: "optimizer.* (99,840 entries)" -> why."""
    counts = Counter(map(_kind, skipped))
    out = {}
    for kind, count in counts.items():
        title = f"{kind} ({count:,} entries)" if count > 1 else kind
        out[title] = REASONS.get(kind, "not a tensor")
    return out


def _kind(name: str) -> str:
    if "._extra_state" in name:
        return "*._extra_state"
    if OPTIMIZER.match(name) and not name.startswith("opt_param_scheduler"):
        return "optimizer.*"
    if name.startswith("rng_state"):
        return "rng_state"
    return printable(name.partition("/")[0])


def _objects(path: Path, meta: dcp.DcpMetadata) -> tuple[object, str]:
    """The common dict of fsdp_dtensor and torch_dcp: an object for each key, and where args were.

    Raises NotACheckpointError without any: a torch_dist save that was not finished has none of them.
    """
    common: dict[str, object] = {}
    for name in ("args", "iteration", "checkpoint_version"):
        if name in meta.objects:
            place = meta.objects[name]
            with reading(path / place.path) as fd:
                common[name] = read_object(fd, place.offset, place.length, f"{path / place.path}: {name}")
    if not common:
        raise NotACheckpointError(
            "metadata.json is missing (Megatron writes it last)",
            where=str(path),
            cause="an unfinished save",
            fix="use an earlier iteration",
        )
    at = meta.objects["args"].path if "args" in common else "no object"
    return common, f"the object args ({at})"


def _common(path: Path, meta: dcp.DcpMetadata) -> tuple[object, str]:
    """The common dict and where it was: common.pt (to 0.18) or a bytes entry of a data file (from 0.19)."""
    if (path / "common.pt").is_file():
        return open_torch(path / "common.pt").root, "common.pt"
    name = next((name for name in meta.objects if name.split("/")[0] == "common_state"), None)
    if name is None:
        return None, "common.pt, which is missing"
    place = meta.objects[name]
    where = f"{path / place.path}: {printable(name)}"
    with reading(path / place.path) as fd:
        root = read_object(fd, place.offset, place.length, where)
    if not isinstance(root, list) or len(root) != 1 or not isinstance(root[0], dict):
        raise FormatError("the common state is not a list of one dict", where=where, got=describe(root))
    return root[0], f"common_state ({place.path})"
