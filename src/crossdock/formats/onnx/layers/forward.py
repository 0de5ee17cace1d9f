"""The whole model as a graph, in the order of the reference forward (`model.forward`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from onnx import helper

from crossdock.formats.onnx.graph import TYPES, Graph, Value
from crossdock.formats.onnx.layers.attention import attention
from crossdock.formats.onnx.layers.convolution import short_convolution
from crossdock.formats.onnx.layers.layer import Inputs, Layer
from crossdock.formats.onnx.layers.mlp import mlp
from crossdock.formats.onnx.layers.per_layer import add_layer_input, inputs_of_layers
from crossdock.formats.onnx.weights import Region, Weights
from crossdock.model.config import ModelConfig

# where sequences of a batch may be padded
PADDING = MappingProxyType({"gqa": "behind", "standard": "anywhere"})


@dataclass(frozen=True)
class Written:
    """A serialised graph.

    caches  of each, its heads and the widths of a head's keys and values
    states  of each convolution, its channels and how many values of each it keeps
    """

    content: bytes
    caches: tuple[tuple[int, int, int], ...]
    states: tuple[tuple[int, int], ...]


def write_graph(
    config: ModelConfig,
    regions: Mapping[tuple[str, int | None], Region],
    dtype: str,
    ops: str,
    notes: Mapping[str, str],
) -> Written:
    """The graph of `config` over the weights at `regions`, in `dtype`.

    ops    the operators of attention; notes: metadata besides
    """
    graph = Graph(dtype)
    inputs = Inputs(*(_input(graph, name, length) for name, length in (
        ("input_ids", "sequence"), ("attention_mask", "total"), ("position_ids", "sequence")
    )))  # fmt: skip
    model = Layer(config, graph, Weights(graph, regions), inputs, ops)
    graph.outputs.append(
        helper.make_tensor_value_info("logits", TYPES["float32"], ("batch", "sequence", config.vocab_size))
    )
    _logits(model, _hidden(model))
    return Written(
        graph.model(config.family, {"ops": ops, "padding": PADDING[ops], **notes}),
        tuple(model.shared.get("caches", ())),
        tuple(model.shared.get("states", ())),
    )


def _input(graph: Graph, name: str, length: str) -> Value:
    graph.inputs.append(helper.make_tensor_value_info(name, TYPES["int64"], ("batch", length)))
    return Value(name, "int64")


def _logits(model: Layer, x: Value) -> None:
    """The logits of x [tokens, hidden_size], float32."""
    config, graph = model.config, model.graph
    y = _head(model, model.norm(x, "norm"))
    y = graph.div(graph.mul(graph.cast(y, "float32"), config.logit_scale), config.logits_scaling)
    y = graph.capped(y, config.final_logit_softcapping)._replace(width=config.vocab_size)
    shape = graph.concat(0, graph.dims(model.inputs.input_ids, 0, 2), graph.ints(config.vocab_size))
    graph.ops("Reshape", y, shape, outputs=["logits"])


def _head(model: Layer, x: Value) -> Value:
    """A tied head is the embedding."""
    return model.linear(x, "embed" if model.config.tie_word_embeddings else "head", bias=model.config.head_bias)


def _hidden(model: Layer) -> Value:
    """The residual stream behind the last layer, [tokens, hidden_size]."""
    config, graph = model.config, model.graph
    x = _rows(model, "embed", model.inputs.input_ids)
    x = graph.mul(x, config.embedding_multiplier)
    if config.scale_embedding:
        x = graph.mul(x, math.sqrt(config.hidden_size))
    if config.position_embedding == "learned":
        x = graph.add(x, _rows(model, "pos_embed", model.inputs.position_ids))
    if config.embed_norm:
        x = model.norm(x, "embed_norm")
    own = inputs_of_layers(model, x)
    if config.high_cycles:
        return _in_cycles(model, x)
    for index in range(config.num_hidden_layers):
        x = _block(replace(model, index=index), x, None if own is None else own[index])
    return x


def _rows(model: Layer, name: str, numbers: Value) -> Value:
    """Rows of a table for every token, [tokens, width]."""
    graph, table = model.graph, model.weights.table(name)
    rows = graph.op("Gather", table, numbers, width=table.width)
    return graph.reshape(rows, -1, table.width)


def _in_cycles(model: Layer, x: Value) -> Value:
    """HRM: the first half of the layers refines a low state before the second half sets the high one.

    A layer that runs several times has a cache for each.
    """
    config, graph = model.config, model.graph
    middle = config.num_hidden_layers // 2

    def through(layers: range, x: Value) -> Value:
        for index in layers:
            x = _block(replace(model, index=index), x, None)
        return x

    low, high = graph.cast(model.vector("low_state"), graph.dtype), x
    for cycle in range(config.high_cycles):
        if cycle:
            high = model.norm(high, "norm")
        for _ in range(config.low_cycles):
            low = model.norm(through(range(middle), graph.add(high, low)), "norm")
        high = through(range(middle, config.num_hidden_layers), graph.add(high, low))
    return high


def _block(layer: Layer, x: Value, own: Value | None) -> Value:
    """The residual stream x [tokens, hidden_size] behind one layer, whose own input is `own` if it has one."""
    graph = layer.graph
    with graph.scope(f"layers.{layer.index}"):
        y = _mixed_and_fed(layer, x)
        if own is not None:
            y = graph.add(y, graph.cast(add_layer_input(layer, y, own), graph.dtype))
        return graph.mul(y, graph.cast(layer.vector("layer_scale"), graph.dtype)) if layer.config.layer_scale else y


def _mixed_and_fed(layer: Layer, x: Value) -> Value:
    """x plus what attention adds, plus what the MLP adds."""
    config, graph, index = layer.config, layer.graph, layer.index
    mixed = x
    if config.has_mixer(index):
        normed = layer.norm(x, "attn_norm") if config.pre_norms else x
        with graph.scope("attention"):
            y = _mixer(layer, normed)
        y = layer.norm(y, "attn_post_norm") if config.post_norms else y
        mixed = _residual(layer, x, y)
    if not config.has_mlp(index):
        return mixed
    stream = x if config.parallel_attn else mixed
    if config.num_ln_in_parallel_attn == 2:
        normed = layer.norm(stream, "ffn_norm") if config.pre_norms else stream
    with graph.scope("mlp"):
        y = mlp(layer, normed, stream)
    y = layer.norm(y, "ffn_post_norm") if config.post_norms else y
    return _residual(layer, mixed, y)


def _mixer(layer: Layer, x: Value) -> Value:
    """What mixes positions, by the type of the layer, for normed x [tokens, hidden_size]."""
    convolution = layer.config.layer_type(layer.index) == "short_convolution"
    return short_convolution(layer, x) if convolution else attention(layer, x)


def _residual(layer: Layer, x: Value, y: Value) -> Value:
    """x plus y in the type of the residual stream."""
    graph = layer.graph
    scaled = graph.mul(graph.cast(y, graph.dtype), layer.config.residual_multiplier)
    return graph.add(graph.cast(x, graph.dtype), scaled)
