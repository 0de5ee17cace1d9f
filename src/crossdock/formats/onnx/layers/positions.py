"""Rotary positions and what else follows from where a token is. As `model.layers.rope`.

The graph has the frequencies and computes the angles of the positions that it is asked for, in float32 as models were
trained with: a table of a long context would be larger than all the rest of the graph.
"""

from __future__ import annotations

import numpy as np

from crossdock.formats.onnx.graph import Value
from crossdock.formats.onnx.layers.layer import Layer
from crossdock.model.layers.rope import frequencies


def positions(layer: Layer) -> Value:
    """The position of every token of the call, float32 [batch, sequence]."""
    if "positions" not in layer.shared:
        layer.shared["positions"] = layer.graph.cast(layer.inputs.position_ids, "float32")
    found: Value = layer.shared["positions"]
    return found


def total(layer: Layer) -> Value:
    """How many positions there are with those of the cache, an int64 vector of one."""
    if "total" not in layer.shared:
        layer.shared["total"] = layer.graph.dims(layer.inputs.attention_mask, 1, 2)
    found: Value = layer.shared["total"]
    return found


def rotate(layer: Layer, x: Value, dim: int) -> Value:
    """Heads x [tokens, heads * dim] with the first values of each rotated, those that the layer's rope has."""
    turning = frequencies(layer.config, layer.index, 1)
    if turning is None:
        return x
    graph = layer.graph
    cos, sin = _angles(layer)
    rotated = 2 * len(turning.radians)
    y = graph.op(
        "RotaryEmbedding", layer.sequences(graph.cast(x, graph.dtype)), cos, sin, None, num_heads=x.width // dim,
        interleaved=int(turning.interleaved), rotary_embedding_dim=0 if rotated == dim else rotated,
    )  # fmt: skip
    return graph.reshape(y, -1, x.width)


def _angles(layer: Layer) -> tuple[Value, Value]:
    """Cosines and sines [batch, sequence, rotary_dim / 2], once for all layers of the same frequencies."""
    config, graph = layer.config, layer.graph
    context = int(config.rope_scaling.get("original_max_position_embeddings") or 0)
    short = frequencies(config, layer.index, 1)
    beyond = frequencies(config, layer.index, context + 1) if context else short
    assert short is not None
    assert beyond is not None
    key = tuple(np.float32(one.radians).tobytes() for one in (short, beyond))
    if key not in layer.shared:
        radians = graph.constant(np.float32(short.radians), "float32")
        if key[0] != key[1]:  # longrope
            longer = graph.op("Greater", total(layer), graph.ints(context), dtype="bool")
            other = graph.constant(np.float32(beyond.radians), "float32")
            radians = graph.op("Where", longer, other, radians, dtype="float32", width=radians.width)
        angles = graph.mul(graph.op("Unsqueeze", positions(layer), graph.ints(-1)), radians)
        layer.shared[key] = tuple(
            graph.cast(graph.mul(graph.op(kind, angles), float(short.magnitude)), graph.dtype)
            for kind in ("Cos", "Sin")
        )
    found: tuple[Value, Value] = layer.shared[key]
    return found
