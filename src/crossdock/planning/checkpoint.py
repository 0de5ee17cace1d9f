"""A source with its meaning: what every planning and every reading begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.formats.stored import Source
from crossdock.layout.rules import Layout
from crossdock.model.config import ModelConfig, ResolvedConfig
from crossdock.model.family import Family
from crossdock.planning.tensors.resolved import Resolved


@dataclass(frozen=True)
class Checkpoint:
    """A source with its meaning: family, configuration, where each canonical tensor lies. Only headers were read.

    addition  where an adapter lies whose products are added to the tensors (`planning.merge`)
    """

    source: Source
    family: Family
    described: ResolvedConfig
    variables: Mapping[str, Any]
    rules: Layout
    resolved: Resolved
    addition: Resolved | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's canonical configuration."""
        return self.described.config

    @property
    def unread(self) -> Mapping[str, str]:
        """Stored names that are left out, and why."""
        return self.resolved.unread
