"""What every layer is written with: linear maps, norms, activations, and the inputs that all layers share.

Values of the residual stream are [tokens, hidden_size], the tokens of all sequences of the batch one behind another.
Norms are computed in float32 whatever the graph's type, as transformers computes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from crossdock.formats.onnx.graph import Graph, Value
from crossdock.formats.onnx.weights import Weights
from crossdock.model.config import ModelConfig


@dataclass(frozen=True)
class Inputs:
    """What the graph is asked: int64 `input_ids` and `position_ids` [batch, sequence], `attention_mask` [batch, total]
    with 1 for every token, also those of the cache, and 0 for padding."""

    input_ids: Value
    attention_mask: Value
    position_ids: Value


@dataclass(frozen=True)
class Layer:
    """One layer of the graph.

    index    its number; -1 outside of the layers
    ops      "gqa" or "standard"
    shared   what layers share: angles, masks, what the indexer chose; and how many caches there are
    """

    config: ModelConfig
    graph: Graph
    weights: Weights
    inputs: Inputs
    ops: str
    index: int = -1
    shared: dict[Any, Any] = field(default_factory=dict)

    @property
    def number(self) -> int | None:
        """The number by which the weights know this layer; None outside of the layers."""
        return None if self.index < 0 else self.index

    def linear(self, x: Value, name: str, *, bias: bool = False, expert: Value | None = None) -> Value:
        """x [tokens, inputs] times the tensor transposed, plus `name`_bias: [tokens, all outputs]."""
        graph, weights = self.graph, self.weights
        if expert is None:
            matrix, turned = weights.matrix(name, self.number, x.width)
            added = weights.vector(f"{name}_bias", self.number, graph.dtype) if bias else None
        else:
            matrix, turned = weights.of_expert(name, self.number, expert, x.width)
            added = weights.of_expert(f"{name}_bias", self.number, expert, 1)[0] if bias else None
        width = weights.outputs(name, self.number, x.width)
        return graph.op("Gemm", graph.cast(x, graph.dtype), matrix, added, width=width, transB=int(not turned))

    def vector(self, name: str) -> Value:
        """The small tensor `name` of this layer, as one vector in float32."""
        return self.weights.vector(name, self.number)

    def norm(self, x: Value, name: str, *, bias: bool | None = None, eps: float | None = None) -> Value:
        """The model's norm of x over its last axis, of x.width elements, with gamma (and beta) `name`.

        A gamma that is longer than the last axis has a row for each of the axis before it (for each head).
        """
        config, graph = self.config, self.graph
        with_bias = config.norm_bias if bias is None else bias
        eps = config.norm_eps if eps is None else eps
        gamma = self._of_heads(x, name) if config.norm_weight else None
        beta = self._of_heads(x, f"{name}_bias") if with_bias else None
        x = graph.cast(x, "float32")
        if config.norm == "layer":
            y = graph.op("LayerNormalization", x, self._ones(x.width), axis=-1, epsilon=eps)
            return self._affine(y, gamma, beta)
        if gamma is not None and gamma.width == x.width and not self._rows(x, name) and beta is None:
            return graph.op("RMSNormalization", x, gamma, axis=-1, epsilon=eps)
        return self._affine(self.unit_rms(x, eps), gamma, beta)

    def rms_norm(self, x: Value, name: str) -> Value:
        """A norm inside latent attention, which is root mean square in every model."""
        eps = self.config.norm_eps if self.config.inner_norm_eps is None else self.config.inner_norm_eps
        graph = self.graph
        return graph.op("RMSNormalization", graph.cast(x, "float32"), self._of_heads(x, name), axis=-1, epsilon=eps)

    def unit_rms(self, x: Value, eps: float) -> Value:
        """x / sqrt(mean(x²) + eps) over the last axis, in float32."""
        x = self.graph.cast(x, "float32")
        return self.graph.op("RMSNormalization", x, self._ones(x.width), axis=-1, epsilon=eps)

    def sequences(self, x: Value) -> Value:
        """x [tokens, width] as [batch, sequence, width]."""
        graph = self.graph
        if "sequences" not in self.shared:
            self.shared["sequences"] = graph.dims(self.inputs.input_ids, 0, 2)
        shape = graph.concat(0, self.shared["sequences"], graph.ints(x.width))
        return graph.op("Reshape", x, shape, width=x.width)

    def _rows(self, x: Value, name: str) -> int:
        """How many rows a gamma has, 0 for one that is as long as the last axis."""
        count = self.weights.outputs(name, self.number, x.width)
        return 0 if count == 1 else count

    def _of_heads(self, x: Value, name: str) -> Value:
        vector, rows = self.vector(name), self._rows(x, name)
        return self.graph.reshape(vector, rows, x.width) if rows else vector

    def _affine(self, y: Value, gamma: Value | None, beta: Value | None) -> Value:
        y = y if gamma is None else self.graph.mul(y, gamma)._replace(width=y.width)
        return y if beta is None else self.graph.add(y, beta)._replace(width=y.width)

    def _ones(self, width: int) -> Value:
        return self.graph.constant([1.0] * width, "float32")


def sigmoid(graph: Graph, x: Value) -> Value:
    """1 / (1 + e^-x)."""
    return graph.op("Sigmoid", x)


def softplus(graph: Graph, x: Value) -> Value:
    """Compute log(1 + e^x), elementwise, in float32."""
    return graph.op("Softplus", graph.cast(x, "float32"))


def activation(graph: Graph, name: str, x: Value, alpha: float = 1.0) -> Value:
    """`hidden_act` of x: silu (with `swiglu_alpha`), gelu (exact), gelu_tanh, relu or relu2."""
    if name == "silu":
        return graph.mul(x, sigmoid(graph, graph.mul(x, alpha)))
    if name in ("gelu", "gelu_tanh"):
        return graph.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
    positive = graph.op("Relu", x)
    return graph.mul(positive, positive) if name == "relu2" else positive
