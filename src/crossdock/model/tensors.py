"""What the reference forward computes with, and the steps that every layer takes: a linear map, a norm, a softmax.

Weights come as float32 in canonical axes, large ones in blocks of output rows, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.rounding import Array, exp, fma, precisely
from crossdock.model.sums import mean, moments, total_wide


class Weights(Protocol):
    """Canonical tensors by name. A tied head is found under its own name."""

    def whole(self, name: str, layer: int | None = None) -> Array:
        """A small tensor, float32 in its canonical axes."""
        ...

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Array]:
        """A large tensor in blocks along its first axis (after layer and expert), in order, each [rows, ...]."""
        ...

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Array:
        """The rows `numbers` of a tensor outside the layers, float32 [len(numbers), ...]."""
        ...


class Model(NamedTuple):
    """A configuration, its weights, and how two matrices are multiplied."""

    config: ModelConfig
    weights: Weights
    product: Callable[[Array, Array], Array]


def linear(
    model: Model,
    x: Array,
    name: str,
    layer: int | None = None,
    expert: int | None = None,
    *,
    bias: bool = False,
    outputs: int = 1,
) -> Array:
    """x [n, inputs] times the tensor transposed, plus `name`_bias: [n, all output axes in one].

    outputs  how many leading axes of the tensor (after layer and expert) are outputs
    """
    parts = []
    for block in model.weights.blocks(name, layer, expert):
        rows = int(np.prod(block.shape[:outputs]))
        parts.append(model.product(x, block.reshape(rows, -1).T))
    y = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    if bias:
        y += model.weights.whole(f"{name}_bias", layer).reshape(-1)
    return y


def rms_norm(x: Array, gamma: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) · gamma over the last axis."""
    return np.asarray(x * (1 / np.sqrt(mean(x * x) + eps)) * gamma)


def norm(model: Model, x: Array, name: str, layer: int | None = None) -> Array:
    """The model's norm with the effective gamma (and beta) `name`."""
    config, gamma = model.config, model.weights.whole(name, layer)
    if config.norm == "rms":
        return rms_norm(x, gamma, config.norm_eps)
    centre, variance = moments(x)
    y = (x - centre) * (1 / np.sqrt(variance + config.norm_eps))
    return fma(y, gamma, model.weights.whole(f"{name}_bias", layer)) if config.norm_bias else np.asarray(y * gamma)


def capped(x: Array, cap: float | None) -> Array:
    """x pressed smoothly into -cap to cap; unchanged without a cap."""
    return x if cap is None else np.asarray(precisely(np.tanh, x / cap) * cap)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e * (1 / total_wide(e)))
