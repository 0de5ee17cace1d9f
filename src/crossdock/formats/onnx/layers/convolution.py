"""Causal convolutions of each channel, with the last values of earlier calls as their state.

As `model.layers.convolution`.
"""

from __future__ import annotations

from onnx import helper

from crossdock.formats.onnx.graph import TYPES, Value
from crossdock.formats.onnx.layers.layer import Layer


def short_convolution(layer: Layer, x: Value) -> Value:
    """What LFM2's convolution adds to the residual stream, for normed x [tokens, hidden_size]."""
    graph, bias = layer.graph, layer.config.short_conv_bias
    b, c, value = (layer.linear(x, name, bias=bias) for name in ("conv_b", "conv_c", "conv_x"))
    added = layer.weights.vector("conv_kernel_bias", layer.number, graph.dtype) if bias else None
    y = graph.mul(c, _convolved(layer, graph.mul(b, value), "conv_kernel", added))
    return layer.linear(y, "conv_o", bias=bias)


def _convolved(layer: Layer, x: Value, kernel: str, bias: Value | None) -> Value:
    """x [tokens, channels] convolved along each sequence; padding counts as 0, as what lies before the first token."""
    graph, channels = layer.graph, x.width
    kernels = layer.weights.table(kernel, layer.number)
    before = kernels.width - 1
    tokens = _of_this_call(layer)
    x = graph.mul(layer.sequences(x), graph.op("Unsqueeze", graph.cast(tokens, x.dtype), graph.ints(2)))
    past, present = _state(layer, channels, before)
    known = graph.op("Concat", past, graph.transpose(x, 0, 2, 1), axis=2)
    _keep(layer, known, tokens, (channels, before), present)
    y = graph.op("Conv", known, graph.reshape(kernels, channels, 1, before + 1), bias, group=channels)
    return graph.reshape(graph.transpose(y, 0, 2, 1), -1, channels)


def _of_this_call(layer: Layer) -> Value:
    """Which positions of this call are tokens, int64 [batch, sequence]."""
    graph = layer.graph
    if "tokens of this call" not in layer.shared:
        length = graph.dims(layer.inputs.input_ids, 1, 2)
        last = graph.op("Neg", length)
        end = graph.ints((1 << 63) - 1)
        layer.shared["tokens of this call"] = graph.op("Slice", layer.inputs.attention_mask, last, end, graph.ints(1))
    found: Value = layer.shared["tokens of this call"]
    return found


def _state(layer: Layer, channels: int, before: int) -> tuple[Value, str]:
    """The last values of earlier calls, [batch, channels, before], and the name of those behind this one."""
    graph, states = layer.graph, layer.shared.setdefault("states", [])
    number = len(states)
    names = f"past_conv.{number}", f"present_conv.{number}"
    states.append((channels, before))
    for tensors, name in zip((graph.inputs, graph.outputs), names, strict=True):
        shape = ("batch", channels, before)
        tensors.append(helper.make_tensor_value_info(name, TYPES[graph.dtype], shape))
    return Value(names[0], graph.dtype, before), names[1]


def _keep(layer: Layer, known: Value, tokens: Value, shape: tuple[int, int], present: str) -> None:
    """Makes the new state of `known` values: those before the padding behind the tokens, or before the end."""
    graph, (channels, before) = layer.graph, shape
    if layer.ops != "gqa":  # padding lies before the tokens
        graph.ops("Slice", known, graph.ints(-before), graph.ints((1 << 63) - 1), graph.ints(2), outputs=[present])
        return
    count = graph.op("ReduceSum", tokens, graph.ints(1), keepdims=1)
    places = graph.op("Unsqueeze", graph.op("Add", count, graph.ints(*range(before))), graph.ints(1))
    places = graph.op("Expand", places, graph.ints(1, channels, 1))
    graph.ops("GatherElements", known, places, outputs=[present], axis=2)
