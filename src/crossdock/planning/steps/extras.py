"""Step 4: tensors that no source holds and the target wants: scales, rope factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crossdock.formats.target import Findings, Target, TensorSpec
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import TargetTensor
from crossdock.planning.steps.encodings import Encoded
from crossdock.planning.steps.findings import findings
from crossdock.planning.steps.sources import Fill


@dataclass(frozen=True)
class Complete:
    """Every tensor of the target, and what is known with all of them in view."""

    encoded: Encoded
    fills: tuple[Fill, ...]
    findings: Findings


def extras(checkpoint: Checkpoint, target: Target[Any], encoded: Encoded) -> Complete:
    """The fills of `encoded`, then the computed tensors. Raises UsageError."""
    specs = [fill.spec for fill in encoded.fills]
    found = findings(checkpoint, encoded.sourced, specs, encoded.fixed)
    computed = [Fill(spec, _computed(spec, data)) for spec, data in target.extra(specs, found)]
    specs += [fill.spec for fill in computed]
    found = findings(checkpoint, encoded.sourced, specs, encoded.fixed)
    return Complete(encoded, (*encoded.fills, *computed), found)


def _computed(spec: TensorSpec, data: bytes) -> TargetTensor:
    return TargetTensor(spec.name, 0, 0, 0, spec.shape, spec.dtype, (), data=data, part=spec.part)
