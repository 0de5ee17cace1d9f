"""How a source is read: the keyword arguments of `open`, which are the options of the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a source is read.

    format     force a source format; iteration: of a Megatron run
    family     instead of the derived one: a name, or the path of a family file
    config     Hugging Face config.json (or its folder), or JSON with Megatron's args or TransformerConfig, that gives
               or overrides the configuration
    set        single fields, in canonical or the format's own names: {"rotary_base": 500000}
    rename     custom stored names -> those of the format, see `planning.renames`
    weights    "master": of a Megatron run the optimizer's float32 weights instead of the model's rounded ones
    base       the model that the source is an adapter of; the source is then that model with the adapter merged into
               it, or without `merge` the adapter alone, for targets that hold adapters
    norm_eps   epsilon of the norms, rope_base: theta of rope, where the source lacks them
    """

    format: str | None = None
    iteration: int | None = None
    family: str | None = None
    config: str | os.PathLike[str] | None = None
    set: Mapping[str, Any] | None = None
    rename: Mapping[str, str] | None = None
    weights: str = "model"
    base: str | os.PathLike[str] | None = None
    merge: bool = True
    norm_eps: float | None = None
    rope_base: float | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What is set of the configuration, as the texts of the command line: by `set`, and by single options."""
        single = {"norm_eps": self.norm_eps, "rope_theta": self.rope_base}
        values = {**(self.set or {}), **{name: value for name, value in single.items() if value is not None}}
        return {name: value if isinstance(value, str) else repr(value) for name, value in values.items()}
