"""Step 3: the dtypes that the target chooses, with the scales of what is divided by them behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crossdock.formats.target import Target, TensorSpec
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.steps.findings import findings
from crossdock.planning.steps.sources import Fill, Sourced
from crossdock.planning.tensors.training_scales import shared


@dataclass(frozen=True)
class Encoded:
    """The target's tensors in their encodings; `fixed`: encodings that were known beforehand."""

    sourced: Sourced
    fills: tuple[Fill, ...]
    fixed: Mapping[str, str]
    warnings: tuple[str, ...]


def encodings(checkpoint: Checkpoint, target: Target[Any], sourced: Sourced, fixed: Mapping[str, str]) -> Encoded:
    """The fills of `sourced`, encoded as `target` wants them. Raises PlanError, UsageError."""
    specs = [fill.spec for fill in sourced.fills]
    found = findings(checkpoint, sourced, specs, fixed)
    specs = shared(specs, sourced.places.rules.encoding.get("shared", ()))
    chosen = target.encode(specs, found)
    fills: list[Fill] = []
    for spec, encoding, (_, tensor) in zip(specs, chosen, sourced.fills, strict=True):
        blocks, scales = encoding.scale_blocks, encoding.static_scales
        filled = replace(tensor, dtype=encoding.dtype, scale_blocks=blocks, static_scales=scales)
        fills.append(Fill(spec._replace(dtype=encoding.dtype, before=spec.dtype), filled))
        if blocks is not None and not scales:
            own = TensorSpec(encoding.scales, (blocks.count,), "float32", spec.part)
            filled = replace(filled, name=own.name, shape=own.shape, dtype=own.dtype, is_scale_tensor=True)
            fills.append(Fill(own, filled))
    return Encoded(sourced, tuple(fills), fixed, _grouped([one.notice for one in chosen if one.notice]))


def _grouped(notices: list[str]) -> tuple[str, ...]:
    """Equal sentences once, with how often."""
    counts: dict[str, int] = {}
    for notice in notices:
        counts[notice] = counts.get(notice, 0) + 1
    return tuple(notice if count == 1 else f"{notice} ({count} tensors)" for notice, count in counts.items())
