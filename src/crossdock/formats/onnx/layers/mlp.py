"""The MLP of a layer: plain or gated, one for all tokens or experts chosen by a router. As `model.layers.mlp`.

Experts are a loop over those that some token chose: each reads its tokens, and its own weights out of the stack.
"""

from __future__ import annotations

from statistics import NormalDist

import onnx
from onnx import helper

from crossdock.formats.onnx.graph import TYPES, Value
from crossdock.formats.onnx.layers.layer import Layer, activation, sigmoid, softplus
from crossdock.formats.onnx.layers.router import route


def mlp(layer: Layer, x: Value, stream: Value) -> Value:
    """What the MLP adds to the residual stream [tokens, hidden_size], for the normed x of it."""
    config, graph = layer.config, layer.graph
    if layer.index in config.linear_mlp_layers:
        return layer.linear(x, "ffn_linear")
    if layer.index not in config.moe_layers:
        return _one(layer, x, "ffn")
    if config.moe_beside_mlp:
        routed = layer.norm(_experts(layer, layer.norm(stream, "exp_norm"), _scaled(layer, stream)), "exp_post_norm")
        return graph.add(layer.norm(_one(layer, x, "ffn"), "ffn_post_norm_1"), routed)
    y = _experts(layer, x, x)
    if config.shared_expert_intermediate_size:
        shared = _one(layer, x, "shexp")
        if config.shared_expert_gate:
            gate = sigmoid(graph, layer.linear(x, "shexp_router"))
            shared = graph.mul(shared, gate)
        y = graph.add(y, shared)
        y = graph.div(y, 2.0) if config.shared_expert_average else y
    return y


def _experts(layer: Layer, x: Value, to_router: Value) -> Value:
    """The sum of what each token's experts give, by their weights; summed in float32."""
    config, graph = layer.config, layer.graph
    chosen, share = route(layer, to_router)
    if config.moe_beside_mlp:
        scales = graph.op("Gather", layer.vector("exp_scale"), chosen)
        share = graph.mul(share, scales)
    if config.moe_latent_size:
        x = layer.linear(x, "exp_latent_in", bias=config.mlp_bias)
    x = graph.cast(x, graph.dtype)
    used = graph.op("Unique", graph.reshape(chosen, -1), sorted=1)
    nothing = graph.op("ConstantOfShape", graph.op("Shape", x), value=helper.make_tensor("zero", 1, [1], [0.0]))
    nothing = nothing._replace(dtype="float32", width=x.width)
    count = graph.op("Squeeze", graph.dims(used, 0, 1), graph.ints(0))
    y = _loop(layer, x, chosen, share, used, count, nothing)
    return layer.linear(y, "exp_latent_out", bias=config.mlp_bias) if config.moe_latent_size else y


def _loop(layer: Layer, x: Value, chosen: Value, share: Value, used: Value, count: Value, start: Value) -> Value:
    """`start` plus what every expert of `used` adds for its tokens."""
    config, graph = layer.config, layer.graph
    names = [graph.name(one) for one in ("turn", "going", "sum")]
    turn, going, y = (Value(name, kind) for name, kind in zip(names, ("int64", "bool", "float32"), strict=True))
    with graph.body() as nodes:
        expert = graph.op("Gather", used, graph.op("Reshape", turn, graph.ints(1)), dtype="int64", width=1)
        places = graph.op("NonZero", graph.op("Equal", chosen, expert, dtype="bool"), dtype="int64")  # token, place
        token = graph.op("Squeeze", graph.slice(places, 0, 0, 1), graph.ints(0))
        weight = graph.op("GatherND", share, graph.transpose(places, 1, 0), width=1)
        weight = graph.op("Unsqueeze", weight, graph.ints(1), width=1)
        mine = graph.op("Gather", x, token, width=x.width)
        if config.router_scales_input:
            computed = _one(layer, graph.cast(graph.mul(mine, weight), graph.dtype), "exp", expert)
        else:
            computed = graph.mul(_one(layer, mine, "exp", expert), weight)
        rows = graph.op("Unsqueeze", token, graph.ints(1))
        added = graph.op("ScatterND", y, rows, graph.cast(computed, "float32"), reduction="add")
        again = graph.op("Identity", going)
    body = helper.make_graph(
        nodes, names[2],
        [helper.make_tensor_value_info(turn.name, onnx.TensorProto.INT64, []),
         helper.make_tensor_value_info(going.name, onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info(y.name, onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(again.name, onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info(added.name, TYPES["float32"], None)],
    )  # fmt: skip
    return graph.op("Loop", count, graph.constant(True, "bool"), start, dtype="float32", width=x.width, body=body)


def _scaled(layer: Layer, stream: Value) -> Value:
    """What the router of experts beside the MLP reads: the stream of unit size, times its own scale."""
    config, graph = layer.config, layer.graph
    normed = layer.unit_rms(stream, config.norm_eps)
    return graph.mul(graph.mul(normed, layer.vector("router_scale")), config.hidden_size**-0.5)


def _one(layer: Layer, x: Value, kind: str, expert: Value | None = None) -> Value:
    """One MLP on x [tokens, hidden_size]: the dense one ("ffn"), an expert ("exp") or the shared experts ("shexp")."""
    config, graph = layer.config, layer.graph
    bias = config.mlp_bias if expert is None else config.expert_bias
    before, behind = config.mlp_multipliers or (1.0, 1.0)
    up = layer.linear(x, f"{kind}_up", bias=bias, expert=expert)
    if config.mlp_gated:
        gate = graph.mul(layer.linear(x, f"{kind}_gate", bias=bias, expert=expert), before)
        if config.activation_sparsity_pattern:
            gate = _sparse(layer, gate, config.activation_sparsity_pattern[layer.index])
        if config.swiglu_limit is not None and (config.swiglu_limit_shared or expert is not None):
            gate = graph.clip(gate, None, config.swiglu_limit)
            up = graph.clip(up, -config.swiglu_limit, config.swiglu_limit)
        up = graph.add(up, config.swiglu_offset) if config.swiglu_offset else up
        up = graph.mul(up, _activated(layer, gate))
    else:
        up = _activated(layer, up)
    if config.sub_norms:
        up = layer.norm(up, f"{kind}_sub_norm")
    return graph.mul(layer.linear(up, f"{kind}_down", bias=bias, expert=expert), behind)


def _activated(layer: Layer, x: Value) -> Value:
    config, graph = layer.config, layer.graph
    if config.hidden_act != "xielu":
        return activation(graph, config.hidden_act, x, config.swiglu_alpha)
    beta, eps = layer.vector("ffn_act_beta"), layer.vector("ffn_act_eps")
    positive = softplus(graph, layer.vector("ffn_act_alpha_p"))
    negative = graph.add(beta, softplus(graph, layer.vector("ffn_act_alpha_n")))
    x = graph.cast(x, "float32")
    shrunk = graph.add(graph.op("Exp", graph.op("Min", x, eps)), -1.0)
    below = graph.mul(graph.binary("Sub", shrunk, x), negative)
    above = graph.mul(graph.mul(positive, x), x)
    chosen = graph.op("Where", graph.op("Greater", x, graph.constant(0.0, "float32"), dtype="bool"), above, below,
                      dtype="float32", width=x.width)  # fmt: skip
    return graph.add(chosen, graph.mul(beta, x))


def _sparse(layer: Layer, gate: Value, share: float) -> Value:
    """What of the gate lies above its `share` quantile, if it were normally distributed; 0 below."""
    if share <= 0:
        return gate
    graph, gate = layer.graph, layer.graph.cast(gate, "float32")
    middle = graph.mean(gate)
    apart = graph.binary("Sub", gate, middle)
    spread = graph.op("Sqrt", graph.mean(graph.mul(apart, apart)))
    return graph.op("Relu", graph.binary("Sub", apart, graph.mul(spread, NormalDist().inv_cdf(share))))
