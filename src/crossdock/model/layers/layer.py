"""What every layer computes with: its canonical tensors, linear maps that are streamed in blocks, norms, activations.

Weights come as float32 in canonical axes, large ones in blocks of output rows, so that memory stays bounded. Results
have the precision of the weights: float32 from files, float64 of float64 weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig

Array = NDArray[np.floating[Any]]


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


@dataclass(frozen=True)
class Layer:
    """One layer of a model: its configuration, the weights of the model, and its number.

    index  the number of the layer; None for what lies outside of the layers (the last norm, the head)
    """

    config: ModelConfig
    weights: Weights
    index: int | None = None

    def tensor(self, name: str) -> Array:
        """The small tensor `name` of this layer, whole, in its canonical axes."""
        return self.weights.whole(name, self.index)

    def linear(self, x: Array, name: str, *, bias: bool = False, outputs: int = 1, expert: int | None = None) -> Array:
        """x [n, inputs] times the tensor transposed, plus `name`_bias: [n, all output axes in one].

        outputs  how many leading axes of the tensor (after layer and expert) are outputs
        """
        parts = []
        for block in self.weights.blocks(name, self.index, expert):
            parts.append(x @ block.reshape(math.prod(block.shape[:outputs]), -1).T)
        y = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return y + self.tensor(f"{name}_bias").reshape(-1) if bias else y

    def norm(self, x: Array, name: str) -> Array:
        """The model's norm of x over its last axis, with the effective gamma (and beta) `name`."""
        config, gamma = self.config, self.tensor(name)
        if config.norm == "rms":
            return rms_norm(x, gamma, config.norm_eps)
        y = layer_norm(x, gamma, config.norm_eps)
        return y + self.tensor(f"{name}_bias") if config.norm_bias else y


def rms_norm(x: Array, gamma: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) · gamma over the last axis."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gamma)


def layer_norm(x: Array, gamma: Array, eps: float) -> Array:
    """(x - mean(x)) / sqrt(var(x) + eps) · gamma over the last axis."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return rms_norm(centred, gamma, eps)


def softmax(x: Array) -> Array:
    """e^x over the sum of e^x, over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return np.asarray(1 / (1 + np.exp(-x)))


def capped(x: Array, cap: float | None) -> Array:
    """x pressed smoothly into -cap to cap; unchanged without a cap."""
    return x if cap is None else np.asarray(np.tanh(x / cap) * cap)


def activation(name: str, x: Array) -> Array:
    """`hidden_act` of x: silu, gelu (exact), gelu_tanh, relu or relu2."""
    if name == "silu":
        return x * sigmoid(x)
    if name == "gelu":
        return np.asarray(0.5 * x * (1 + erf(x * math.sqrt(0.5))))
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    positive = np.maximum(x, 0)
    return positive**2 if name == "relu2" else positive


def erf(x: Array) -> Array:
    """The error function, which numpy lacks, value by value."""
    values = memoryview(np.ravel(x).astype(np.float64))  # type: ignore[arg-type]
    return np.fromiter(map(math.erf, values), x.dtype, x.size).reshape(x.shape)
