"""Which stored tensor holds which part of which canonical tensor, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crossdock.formats.stored import StoredTensor
from crossdock.layout.lenses import Container, Lens
from crossdock.layout.maps import Steps

Key = tuple[int | None, int | None]  # layer and expert that a container is about, None for all


def key_of(lens: Lens) -> Key:
    """The layer and the expert that a lens is about, None for several or none."""
    single = {p.axis: p.low for p in lens.axes if p.axis in ("layer", "expert") and p.high - p.low == 1}
    return single.get("layer"), single.get("expert")


@dataclass(frozen=True, slots=True)
class SourceSlice:
    """A lens on a stored tensor; `storing`: what made its values of the canonical ones."""

    lens: Lens
    stored: StoredTensor
    storing: Steps

    @property
    def shown(self) -> str:
        """The stored tensor's name for people, with its part where names repeat."""
        return f"{self.stored.part}/{self.stored.name}" if self.stored.part else self.stored.name


@dataclass(frozen=True, slots=True)
class Match:
    """A stored tensor where a rule has a container. padding: an axis that is stored longer, and by how much."""

    container: Container
    stored: StoredTensor
    padding: tuple[str, int] | None = None

    @property
    def fits(self) -> bool:
        """Whether the shapes are the same."""
        return self.stored.shape == self.container.shape


@dataclass(frozen=True)
class Resolved:
    """Where a source keeps the canonical tensors.

    provisions  canonical tensor -> (layer, expert) -> lenses, copies left out
    equality_checks       stored tensors that must equal a canonical one: (stored, its lens, canonical name)
    unread      stored names that are left out -> reason
    padding     canonical axis -> elements beyond the model's that the source stores
    """

    provisions: Mapping[str, Mapping[Key, tuple[SourceSlice, ...]]]
    equality_checks: tuple[tuple[SourceSlice, str], ...]
    unread: Mapping[str, str]
    padding: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def all(self, name: str) -> tuple[SourceSlice, ...]:
        """Every provision of a canonical tensor."""
        return tuple(found for by_key in self.provisions.get(name, {}).values() for found in by_key)
