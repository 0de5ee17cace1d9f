"""Inputs that every layer has of its own (Gemma 3n, Gemma 4), as `model.layers.per_layer`."""

from __future__ import annotations

import math

from crossdock.formats.onnx.graph import Value
from crossdock.formats.onnx.layers.layer import Layer, activation


def inputs_of_layers(model: Layer, x: Value) -> list[Value] | None:
    """Of every layer [tokens, hidden_size_per_layer_input], of the embeddings x [tokens, hidden_size]; None without."""
    config, graph = model.config, model.graph
    width, layers = config.hidden_size_per_layer_input, config.num_hidden_layers
    if not width:
        return None
    ids = model.inputs.input_ids
    inside = graph.op("Less", ids, graph.constant(config.vocab_size_per_layer_input, "int64"), dtype="bool")
    ids = graph.op("Where", inside, ids, graph.constant(0, "int64"), dtype="int64")
    own = graph.op("Gather", model.weights.table("ple_embed"), ids)
    own = graph.mul(graph.reshape(own, -1, layers, width), math.sqrt(width))
    projected = graph.mul(model.linear(x, "ple_proj"), config.hidden_size**-0.5)
    normed = model.norm(graph.reshape(projected, -1, layers, width), "ple_proj_norm")
    both = graph.mul(graph.add(normed, own), 2**-0.5)
    return [graph.reshape(graph.slice(both, 1, index, index + 1), -1, width) for index in range(layers)]


def add_layer_input(layer: Layer, x: Value, own: Value) -> Value:
    """What the layer's own input adds to the stream x [tokens, hidden_size]."""
    graph = layer.graph
    gate = activation(graph, layer.config.hidden_act, layer.linear(x, "ple_gate"))
    return layer.norm(layer.linear(graph.mul(gate, own), "ple_out"), "ple_post_norm")
