"""What people look at before they act: the parameters, bytes and memory of a checkpoint or plan."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from crossdock.lazy import loader

if TYPE_CHECKING:
    from crossdock.running.run import check_place
    from crossdock.summary.plans import planned, save_plan
    from crossdock.summary.sizes import parameters, stored_bytes, target_sizes

__all__ = ["check_place", "parameters", "planned", "save_plan", "stored_bytes", "target_sizes"]

if not TYPE_CHECKING:  # so that type checkers see no name but those above
    __getattr__ = loader(
        __name__,
        MappingProxyType(
            {
                **dict.fromkeys(("planned", "save_plan"), "crossdock.summary.plans"),
                "check_place": "crossdock.running.run",
                **dict.fromkeys(("parameters", "stored_bytes", "target_sizes"), "crossdock.summary.sizes"),
            }
        ),
    )
