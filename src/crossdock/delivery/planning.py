"""`plan`: what writing a checkpoint in a format would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossdock.formats import registry
from crossdock.formats.options import Options
from crossdock.formats.target import Target
from crossdock.io.collection import paused_collection
from crossdock.io.system import documented_errors
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.nextn import with_asked_layers
from crossdock.planning.plan import Plan
from crossdock.planning.planner import NONE_FIXED, make_plan
from crossdock.planning.tensors.decodable import demand_decodable
from crossdock.running.weights import numbers_of


def target_options(to: str) -> type[Options]:
    """The options of a target: a frozen dataclass whose fields are keyword arguments of `plan` and `export`.

    to  name of the format to write, one of `crossdock formats`

    Raises UsageError for an unknown format.
    """
    return registry.options_type(to)


@documented_errors()
@paused_collection()
def plan(checkpoint: Checkpoint, to: str, **options: Any) -> Plan:
    """Plan the conversion of a checkpoint: what would be read, computed and written. No tensor data is read.

    checkpoint  what `open` returned
    to          name of the format to write, one of `crossdock formats`
    options     of the target, by name (`target_options(to)`); sizes may be texts such as "2GiB"

    Raises UsageError for an option that the target does not have, PlanError for a model that the format cannot hold,
    TokenizerError, and FormatError for encodings that crossdock does not decode.
    """
    return planned(checkpoint, registry.made_target(to, options))


def planned(checkpoint: Checkpoint, target: Target[Any], fixed: Mapping[str, str] = NONE_FIXED) -> Plan:
    """Plan writing `checkpoint` as `target`: what `plan`, `export` and `verify` have in common.

    fixed  encodings of an output that is being verified

    Raises what `plan` raises.
    """
    demand_decodable(checkpoint.source.tensors.values(), str(checkpoint.source.root))
    checkpoint = with_asked_layers(checkpoint, target.options)
    return make_plan(checkpoint, target, numbers_of(checkpoint), fixed)
