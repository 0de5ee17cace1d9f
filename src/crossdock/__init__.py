"""crossdock: trained language-model checkpoints delivered into inference engines. One pass, bounded memory, proof.

    import crossdock
    checkpoint = crossdock.open("runs/iter_0010000")
    plan = crossdock.plan(checkpoint, to="gguf", quantize="q8_0", tokenizer="tok/")
    crossdock.run(plan, "model.gguf")
    assert crossdock.verify("model.gguf", against=checkpoint).ok

Names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from crossdock.lazy import loader
from crossdock.version import VERSION as __version__

if TYPE_CHECKING:
    from crossdock.delivery import check, diff, export, open, plan, read, run, target_options, tensors, verify
    from crossdock.errors import (
        CheckFailed,
        ConfigError,
        CrossdockError,
        EnvironmentProblem,
        FormatError,
        InputError,
        MemoryPlanError,
        NotACheckpointError,
        PlanError,
        Problem,
        TokenizerError,
        UnsafePickleError,
        UsageError,
    )
    from crossdock.planning.checkpoint import Checkpoint
    from crossdock.planning.plan import Plan
    from crossdock.running.check import CheckReport
    from crossdock.running.diff import DiffReport
    from crossdock.running.results import RunReport
    from crossdock.running.verify import VerifyReport

__all__ = [
    "CheckFailed",
    "CheckReport",
    "Checkpoint",
    "ConfigError",
    "CrossdockError",
    "DiffReport",
    "EnvironmentProblem",
    "FormatError",
    "InputError",
    "MemoryPlanError",
    "NotACheckpointError",
    "Plan",
    "PlanError",
    "Problem",
    "RunReport",
    "TokenizerError",
    "UnsafePickleError",
    "UsageError",
    "VerifyReport",
    "__version__",
    "check",
    "diff",
    "export",
    "open",
    "plan",
    "read",
    "run",
    "target_options",
    "tensors",
    "verify",
]  # fmt: skip


def __dir__() -> list[str]:
    """Every name that the package offers, those that were not used yet too."""
    return sorted(__all__)


_HOMES = MappingProxyType({  # of classes; verbs lie in delivery, and the rest are errors
    "CheckReport": "crossdock.running.check",
    "Checkpoint": "crossdock.planning.checkpoint",
    "DiffReport": "crossdock.running.diff",
    "Plan": "crossdock.planning.plan",
    "RunReport": "crossdock.running.results",
    "VerifyReport": "crossdock.running.verify",
})  # fmt: skip

if not TYPE_CHECKING:  # so that type checkers see no name but those above
    __getattr__ = loader(
        __name__,
        MappingProxyType(
            {name: _HOMES.get(name, f"crossdock.{'delivery' if name.islower() else 'errors'}") for name in __all__}
        ),
    )
