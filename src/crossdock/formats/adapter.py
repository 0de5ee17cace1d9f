"""What an adapter's format hands over besides its tensors: which tensors of its base they change, and how.

Names are those that the base has in the format `names_of`; where they lie in a model is for the planner to find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from crossdock.formats.stored import StoredTensor

Form = Literal["linear", "embedding", "experts"]


@dataclass(frozen=True, slots=True)
class StoredPair:
    """Two matrices of small rank that change one tensor of the base.

    names       what the tensor may be called; the first that exists and has the right shape is meant
    a, b        linear: [..., rank, in] and [..., out, rank], both stacked alike; embedding: [rank, rows] and
                [columns, rank] of the base's matrix; experts: [expert * rank, in] and [out, rank * expert]
    scale       what their product is multiplied by
    magnitudes  of DoRA: [out]
    """

    names: tuple[str, ...]
    a: StoredTensor
    b: StoredTensor
    form: Form
    rank: int
    scale: float
    magnitudes: StoredTensor | None = None


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a tensor of the base, [row, ...], that stand in place of its rows `numbers`."""

    numbers: tuple[int, ...]
    tensor: StoredTensor


@dataclass(frozen=True)
class Adapter:
    """An adapter as its format knows it.

    names_of  the format whose names of the base's tensors these are
    replaced  tensors that stand in place of the base's, under the base's names; `rows`: the same for single rows
    base      what the adapter says it was trained on, for messages
    restated  those of `replaced` that are the base's own, saved along with a pair
    """

    names_of: str
    pairs: tuple[StoredPair, ...]
    replaced: Mapping[str, StoredTensor] = field(default_factory=dict)
    rows: Mapping[str, StoredRows] = field(default_factory=dict)
    base: str = ""
    restated: frozenset[str] = frozenset()

    @property
    def changed(self) -> frozenset[str]:
        """The names of the base's tensors that are replaced, whole or in rows, by what was trained."""
        return frozenset(self.replaced.keys() | self.rows.keys()) - self.restated
