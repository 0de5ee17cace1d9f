"""Making a plan: for every tensor of the target, the boxes that fill it. Writes nothing.

It reads no tensor data but the few numbers that a target has in the keys of its configuration.

Everything that can be known to be wrong before copying is raised here, all problems of a step at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from crossdock.formats.target import Target
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Plan
from crossdock.planning.steps.assembly import assemble
from crossdock.planning.steps.containers import containers
from crossdock.planning.steps.encodings import encodings
from crossdock.planning.steps.extras import extras
from crossdock.planning.steps.sources import Numbers, sources

NONE_FIXED: Mapping[str, str] = MappingProxyType({})


def make_plan(
    checkpoint: Checkpoint, target: Target[Any], numbers: Numbers, fixed: Mapping[str, str] = NONE_FIXED
) -> Plan:
    """The plan that writes `checkpoint` as `target`.

    numbers  reads the values of a small canonical tensor
    fixed  tensor name -> codec, known beforehand: `verify` takes them from the output

    Raises PlanError, UsageError, TokenizerError with all problems.
    """
    places = containers(checkpoint, target)
    sourced = sources(checkpoint, target, places, numbers)
    encoded = encodings(checkpoint, target, sourced, fixed)
    complete = extras(checkpoint, target, encoded)
    return assemble(checkpoint, target, complete)
