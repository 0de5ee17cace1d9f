"""`plan`: what writing a checkpoint in a format would do."""

from __future__ import annotations

from typing import Any

from crossdock.formats import registry
from crossdock.formats.options import Options
from crossdock.io.system import documented_errors
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Plan
from crossdock.planning.planner import make_plan
from crossdock.planning.tensors.decodable import demand_decodable
from crossdock.running.weights import numbers_of


def options(to: str) -> type[Options]:
    """The options of target `to`: a dataclass whose fields are the keyword arguments of `plan` and `export`.

    Raises UsageError.
    """
    return registry.options_type(to)


@documented_errors()
def plan(checkpoint: Checkpoint, to: str, **options: Any) -> Plan:
    """What writing `checkpoint` as `to` would do: pure data, made without reading tensor data.

    options  of the target, by name: see `options(to)`; sizes may be texts such as "2GiB"

    Raises UsageError, also for an option that the target does not have, PlanError, TokenizerError, FormatError for
    encodings that are not decoded.
    """
    made_target = registry.made_target(to, options)
    demand_decodable(checkpoint.source.tensors.values(), str(checkpoint.source.root))
    return make_plan(checkpoint, made_target, numbers_of(checkpoint))
