"""llama.cpp's legacy training checkpoints as a source: ggcp (train-text-from-scratch) and ggcl (LoRA finetune) of 2023.

Tensors get the names that GGUF has for their positions. Nothing else of a file is read than its headers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.errors import CrossdockError
from crossdock.formats.ggml_training.contents import MAGICS, RANKS, Contents, read_contents
from crossdock.formats.ggml_training.optimizer import NAMES, Optimizer
from crossdock.formats.ggml_training.records import Record
from crossdock.formats.stored import Extent, Source, SourceFile, StoredTensor
from crossdock.io.files import head_of

FORMAT = "ggml_training"
_OPTIMIZER_NAMES = {"adam": "Adam", "lbfgs": "L-BFGS"}
_WROTE = {
    ("ggcp", "0"): "train-text-from-scratch, 2023-06-13 to 2023-08-28",
    ("ggcp", "1"): "train-text-from-scratch of a branch, 2023-06-15 to 2023-08-28",
    ("ggcp", "1a"): "train-text-from-scratch of a branch, 2023-06-15",
    ("ggcl", "1"): "LoRA finetune of a branch, 2023-08-16 to 2023-08-29",
}
_BECOMES = {
    "ggcp": "gguf-checkpoint (resumes in the trainers of late 2023), gguf and hf (the model)",
    "ggcl": "gguf-checkpoint (resumes in the trainers of late 2023), gguf-lora and peft (without the norms), "
    "gguf and hf (--base MODEL --merge: everything)",
}


def sniff(path: Path) -> bool:
    """A regular file that begins with one of the two magic numbers."""
    try:
        if not path.is_file():
            return False
        return head_of(path, 4) in MAGICS
    except (OSError, CrossdockError):
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open a file. Raises FormatError that names the byte where it goes wrong."""
    contents = read_contents(path)
    records = dict(contents.tensors)
    optimizer = contents.optimizer
    if optimizer is not None:
        records |= {stored_name(optimizer.kind, name): record for name, record in optimizer.tensors.items()}
    return Source(
        format=FORMAT,
        root=path,
        files=(SourceFile.of(path),),
        tensors={("", name): _stored(name, record) for name, record in records.items()},
        metadata=_metadata(contents),
        metadata_at=str(path),
        notes=_notes(contents),
    )


def stored_name(kind: str, name: str) -> str:
    """The name under which a vector of the optimizer is stored: GGUF's, or ggml's own where GGUF has none."""
    return f"optimizer.{kind}.{NAMES['adam' if kind == 'adam' else 'lbfgs'][name] or name}"


def _stored(name: str, record: Record) -> StoredTensor:
    shape = tuple(reversed(record.ne))
    return StoredTensor(name, shape, "float32", (Extent(0, record.data, record.nbytes, (0,) * len(shape), shape),))


def _metadata(contents: Contents) -> dict[str, Any]:
    """The header's numbers under the names of llama.cpp's own structs, and the optimizer's under those of GGUF."""
    out: dict[str, Any] = {"kind": contents.kind, **contents.sizes}
    context, rest = divmod(contents.sizes["train_tokens"], max(1, contents.sizes["train_samples"]))
    if context and not rest:
        out["n_ctx"] = context
    if contents.kind == "ggcl":
        out["lora_ranks"] = {name: contents.ranks[name] for name in RANKS}
    else:
        out |= {"default_norm_eps": 1e-5, "default_rope_base": 10000.0}
        out |= {} if "n_ctx" in out else {"default_n_ctx": 128}
    if contents.optimizer is not None:
        out |= {f"optimizer_{key}": value for key, value in _state(contents.optimizer).items()}
    return out


def _state(optimizer: Optimizer) -> dict[str, Any]:
    counts = {"type": optimizer.kind, "block_version": optimizer.version}
    numbers = {f"{optimizer.kind}_{name}": value for name, value in optimizer.numbers.items()}
    if optimizer.kind == "lbfgs":
        numbers["lbfgs_approx_hessian_count"] = optimizer.memory
    return {
        **counts, "convergence_past_count": optimizer.past, "parameter_count": optimizer.parameters,
        "iteration_count": optimizer.iteration, "just_initialized": optimizer.just_initialized, **numbers,
    }  # fmt: skip


def _notes(contents: Contents) -> Mapping[str, str]:
    sizes, optimizer = contents.sizes, contents.optimizer
    what = "a model and its training state" if contents.kind == "ggcp" else "a LoRA adapter and its training state"
    notes = {"kind": f"{contents.kind}: {what}, of llama.cpp's own trainer of 2023"}
    version = "0" if optimizer is None else optimizer.version
    notes["written by"] = _WROTE.get((contents.kind, version), "a program of 2023")
    seen = f"{sizes['train_tokens']:,} tokens seen in {sizes['train_samples']:,} samples"
    notes["trained"] = f"{sizes['train_its']:,} iterations, {seen}"
    notes["optimizer"] = _optimizer_note(optimizer)
    if contents.ranks:
        notes["ranks"] = ", ".join(f"{name} {rank}" for name, rank in contents.ranks.items())
    if contents.strange:
        notes["names"] = f"{contents.strange} tensors have another name than their position says; the position counts"
    notes["can become"] = _BECOMES[contents.kind] if optimizer else _BECOMES[contents.kind].partition("), ")[2]
    return notes


def _optimizer_note(optimizer: Optimizer | None) -> str:
    if optimizer is None:
        return "none: the file ends behind the model, as a trainer with --use-lbfgs left it when it aborted"
    numbers = optimizer.numbers
    details = [
        f"{_OPTIMIZER_NAMES[optimizer.kind]}, iteration {optimizer.iteration:,}",
        f"block version {optimizer.version}",
    ]
    if math.isfinite(numbers["best_loss"]):
        details.append(f"best loss {numbers['best_loss']:.5g}")
    if optimizer.kind == "lbfgs":
        details.append(f"memory {optimizer.memory}")
    if optimizer.past:
        details.append(f"the last {optimizer.past} losses")
    return ", ".join(details)
