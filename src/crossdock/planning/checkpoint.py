"""A source with its meaning: what every planning and every reading begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.formats.stored import Source
from crossdock.layout.rules import Layout
from crossdock.model.config import ModelConfig, ResolvedConfig
from crossdock.model.family import Family
from crossdock.planning.pairs import Addition
from crossdock.planning.tensors.resolved import Resolved


@dataclass(frozen=True)
class Checkpoint:
    """A source with its meaning. Only headers were read.

    source     what is stored: files, tensors with shapes and dtypes, and the configuration's keys
    family     the kind of model
    described  the canonical configuration, and where each field came from
    variables  name -> number: what the layout's offsets and conditions may name
    rules      where the source's format keeps the canonical tensors of this family
    resolved   which stored tensor holds which part of which canonical tensor
    addition   the pairs of an adapter whose products are added to the tensors (`planning.merge`)
    replaces   whether tensors of that adapter stand in place of the model's own
    is_adapter  this is the adapter alone; family, configuration and rules are those of its model
    """

    source: Source
    family: Family
    described: ResolvedConfig
    variables: Mapping[str, Any]
    rules: Layout
    resolved: Resolved
    addition: Addition | None = None
    replaces: bool = False
    is_adapter: bool = False

    def __repr__(self) -> str:
        """In one line what it is; the fields have the rest."""
        kind = "adapter of a " if self.is_adapter else ""
        stored = f"{self.source.format}, {len(self.source.tensors):,} tensors"
        return f"<Checkpoint {self.source.root}: {kind}{self.family.name}, {stored}>"

    @property
    def config(self) -> ModelConfig:
        """The model's canonical configuration."""
        return self.described.config

    @property
    def unread(self) -> Mapping[str, str]:
        """Stored names that are left out, and why."""
        return self.resolved.unread
