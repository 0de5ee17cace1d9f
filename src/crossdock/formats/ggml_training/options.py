"""What can be asked of a training checkpoint in GGUF."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.formats.options import TokenizerOptions
from crossdock.options import flag, option


@dataclass(frozen=True, kw_only=True)
class GgufCheckpointOptions(TokenizerOptions):
    """keep_order: leave the optimizer's vectors in the order in which the source has them."""

    keep_order: bool = option(False, flag, "Leave the optimizer's vectors in their order.", replayed=True)
