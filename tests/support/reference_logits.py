"""Logits of crossdock's reference forward for a checkpoint of any format; of `Doubled` weights in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import crossdock.delivery as delivery
from crossdock.model.forward import forward
from crossdock.model.layers.layer import Array, Weights
from crossdock.running.weights import CheckpointWeights

MEMORY = 8 << 20
# how far float32 logits of two programs lie apart at most, as a share of the largest logit (docs/decisions/0005);
# Megatron's stored logits of one model lie 2.8e-6 from those in float64
FLOAT32 = 2e-6
STORED = {"deepseek-v019-dist-tp2pp2-fp32": 4e-6}


@dataclass(frozen=True)
class Doubled:
    """The same weights as float64: `forward` computes in the precision that it is given."""

    weights: Weights

    def whole(self, name: str, layer: int | None = None) -> Array:
        return self.weights.whole(name, layer).astype(np.float64)

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Array]:
        return (block.astype(np.float64) for block in self.weights.blocks(name, layer, expert))

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Array:
        return self.weights.rows(name, numbers).astype(np.float64)


def relative(got: Array, expected: Array) -> float:
    """The largest difference as a share of the largest expected logit."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def reference_logits(
    path: Path,
    tokens: NDArray[np.integer[Any]],
    *,
    config: Path | None = None,
    held: Callable[[Weights], Weights] = lambda weights: weights,
) -> Array:
    """[batch, n, vocabulary] for `tokens` [batch, n]; `held` wraps the weights."""
    checkpoint = delivery.open(path, config=config)
    with CheckpointWeights(checkpoint, MEMORY) as weights:
        return np.stack([forward(checkpoint.config, held(weights), row.tolist()) for row in np.atleast_2d(tokens)])
