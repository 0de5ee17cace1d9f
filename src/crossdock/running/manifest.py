"""The manifest beside an output: which tool made it from which files, and every tensor with its hash and sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdock.planning.plan import Plan
from crossdock.running.results import TensorResult
from crossdock.version import VERSION


def manifest_path(output: Path) -> Path:
    """`OUT.manifest.json`, beside OUT."""
    return output.with_name(f"{output.name}.manifest.json")


def manifest_bytes(plan: Plan, tensors: Sequence[TensorResult], hash_name: str) -> bytes:
    """The manifest as JSON. Holds no time of its own: equal runs write equal manifests."""
    document: dict[str, Any] = {
        "crossdock": VERSION,
        "plan": plan.digest,
        "hash": hash_name,
        "source": {
            "format": plan.source_format,
            "root": str(plan.source_root),
            "files": [{"path": str(f.path), "bytes": f.size, "mtime_ns": f.mtime_ns} for f in plan.sources],
        },
        "target": {
            "format": plan.target_format,
            "files": [{"name": f.name, "bytes": f.size} for f in plan.files],
        },
        "config": plan.described.config.as_dict(),
        "origins": dict(plan.described.origins),
        "warnings": list(plan.warnings),
        "ignored": dict(plan.ignored),
        "tensors": [
            {
                "name": t.name,
                "file": t.file,
                "dtype": t.dtype,
                "shape": list(t.shape),
                "bytes": t.nbytes,
                hash_name: t.hash,
                "from": list(planned.sources),
                "holds": list(planned.of),
                **_found(t),
            }
            for t, planned in zip(tensors, plan.tensors, strict=True)
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _found(tensor: TensorResult) -> dict[str, Any]:
    """What was counted and measured in a tensor, without the zeros."""
    census = tensor.census
    counts: dict[str, Any] = {name: getattr(census, name) for name in ("nan", "inf", "overflow", "underflow")}
    if tensor.figures is not None:
        figures = tensor.figures
        named = {"max_abs": figures.max_abs, "rms": figures.rms, "relative_rms": figures.relative_rms}
        # rounded, they do not depend on the blocks in which sums were made
        counts["error"] = {name: float(f"{value:.6g}") for name, value in named.items()}
    counts |= {"all_zero": census.all_zero and census.elements > 0, "equal_experts": tensor.alike}
    return {name: value for name, value in counts.items() if value}
