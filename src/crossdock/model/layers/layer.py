"""What every layer computes with: its canonical tensors, linear maps that are streamed in blocks, norms, activations.

Weights come as float32 in canonical axes, large ones in blocks of output rows, so that memory stays bounded. Results
have the precision of the weights: float32 from files, float64 of float64 weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
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

    index   the number of the layer; -1 for what lies outside of the layers (the last norm, the head)
    shared  what later layers take from earlier ones, in one forward
    """

    config: ModelConfig
    weights: Weights
    index: int = -1
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int | None:
        """The number by which the weights know this layer; None outside of the layers."""
        return None if self.index < 0 else self.index

    def tensor(self, name: str) -> Array:
        """The small tensor `name` of this layer, whole, in its canonical axes."""
        return self.weights.whole(name, self.number)

    def linear(self, x: Array, name: str, *, bias: bool = False, expert: int | None = None) -> Array:
        """x [n, inputs] times the tensor transposed, plus `name`_bias: [n, all output axes in one].

        The tensor has output axes and then input axes, as many values of these as x has in a row.
        """
        blocks = self.weights.blocks(name, self.number, expert)
        parts = [x @ block.reshape(-1, x.shape[1]).T for block in blocks]
        y = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        if not bias:
            return y
        added = self.tensor(f"{name}_bias")
        return y + (added if expert is None else added[expert]).reshape(-1)

    def norm(self, x: Array, name: str, *, bias: bool | None = None, eps: float | None = None) -> Array:
        """The model's norm of x over its last axis, with the effective gamma (and beta) `name`.

        A gamma that is longer than the last axis has a row for each of the axis before it (for each head).
        bias  whether there is a beta; by default as the configuration has it
        """
        config = self.config
        with_bias = config.norm_bias if bias is None else bias
        normed = unit_rms if config.norm == "rms" else unit_variance
        y = normed(x, config.norm_eps if eps is None else eps)
        if config.norm_weight:
            y = y * self._of_heads(x, name)
        return y + self._of_heads(x, f"{name}_bias") if with_bias else y

    def rms_norm(self, x: Array, name: str) -> Array:
        """A norm inside latent attention, Mamba or an index, which is root mean square in every model."""
        config = self.config
        eps = config.norm_eps if config.inner_norm_eps is None else config.inner_norm_eps
        return unit_rms(x, eps) * self._of_heads(x, name)

    def _of_heads(self, x: Array, name: str) -> Array:
        tensor = self.tensor(name)
        return tensor.reshape(x.shape[-1:] if tensor.size == x.shape[-1] else x.shape[1:])


def unit_rms(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) over the last axis."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


def unit_variance(x: Array, eps: float) -> Array:
    """(x - mean(x)) / sqrt(var(x) + eps) over the last axis."""
    return unit_rms(x - np.mean(x, axis=-1, keepdims=True), eps)


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


def softplus(x: Array) -> Array:
    """Compute log(1 + e^x), elementwise."""
    return np.asarray(np.logaddexp(0, x).astype(x.dtype))


def gelu(x: Array) -> Array:
    """Compute x · Φ(x) exactly, elementwise."""
    values = memoryview(np.ravel(x).astype(np.float64) * math.sqrt(0.5))  # type: ignore[arg-type]
    erf = np.fromiter(map(math.erf, values), x.dtype, x.size)  # numpy has no error function
    return np.asarray(0.5 * x * (1 + erf.reshape(x.shape)))


def activation(name: str, x: Array, alpha: float = 1.0) -> Array:
    """`hidden_act` of x: silu (with `swiglu_alpha`), gelu (exact), gelu_tanh, relu or relu2."""
    if name == "silu":
        return x * sigmoid(alpha * x)
    if name == "gelu":
        return gelu(x)
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    positive = np.maximum(x, 0)
    return positive**2 if name == "relu2" else positive
