"""The verbs: open, plan, run, export, verify, check, diff. Each is a few lines over the layers below."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from crossdock.lazy import loader

if TYPE_CHECKING:
    from crossdock.delivery.arrays import read, tensors
    from crossdock.delivery.comparing import check, diff
    from crossdock.delivery.exporting import export, run
    from crossdock.delivery.opening import interpret, open, overrides_from
    from crossdock.delivery.planning import plan, target_options
    from crossdock.delivery.verifying import verify
    from crossdock.running.destination import default_output, destination, local_path

__all__ = [
    "check",
    "default_output",
    "destination",
    "diff",
    "export",
    "interpret",
    "local_path",
    "open",
    "overrides_from",
    "plan",
    "read",
    "run",
    "target_options",
    "tensors",
    "verify",
]  # fmt: skip

if not TYPE_CHECKING:  # so that type checkers see no name but those above
    __getattr__ = loader(
        __name__,
        MappingProxyType(
            {
                **dict.fromkeys(("read", "tensors"), "crossdock.delivery.arrays"),
                **dict.fromkeys(("check", "diff"), "crossdock.delivery.comparing"),
                **dict.fromkeys(("export", "run"), "crossdock.delivery.exporting"),
                **dict.fromkeys(("default_output", "destination", "local_path"), "crossdock.running.destination"),
                **dict.fromkeys(("interpret", "open", "overrides_from"), "crossdock.delivery.opening"),
                **dict.fromkeys(("target_options", "plan"), "crossdock.delivery.planning"),
                "verify": "crossdock.delivery.verifying",
            }
        ),
    )
