"""Making a plan: for every tensor of the target, the boxes that fill it. Reads no tensor data and writes nothing.

Everything that can be known to be wrong before copying is raised here, all problems of a step at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from crossdock.formats.target import Target
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.nextn import with_asked_layers
from crossdock.planning.plan import Plan
from crossdock.planning.steps.assembly import assemble
from crossdock.planning.steps.containers import containers
from crossdock.planning.steps.encodings import encodings
from crossdock.planning.steps.extras import extras
from crossdock.planning.steps.sources import sources

NONE_FIXED: Mapping[str, str] = MappingProxyType({})


def make_plan(checkpoint: Checkpoint, target: Target[Any], fixed: Mapping[str, str] = NONE_FIXED) -> Plan:
    """The plan that writes `checkpoint` as `target`.

    fixed  tensor name -> codec, known beforehand: `verify` takes them from the output

    Raises PlanError, UsageError, TokenizerError with all problems.
    """
    checkpoint = with_asked_layers(checkpoint, target.options)
    places = containers(checkpoint, target)
    sourced = sources(checkpoint, target, places)
    encoded = encodings(checkpoint, target, sourced, fixed)
    complete = extras(checkpoint, target, encoded)
    return assemble(checkpoint, target, complete)
