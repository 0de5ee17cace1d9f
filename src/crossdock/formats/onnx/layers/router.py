"""The router: which experts a token has, and with which weights. As `model.layers.router`, in float32."""

from __future__ import annotations

import numpy as np

from crossdock.formats.onnx.graph import Value
from crossdock.formats.onnx.layers.layer import Layer, sigmoid, softplus


def route(layer: Layer, x: Value) -> tuple[Value, Value]:
    """The experts of every token of x [tokens, hidden_size] and their weights, both [tokens, num_experts_per_tok]."""
    config, graph = layer.config, layer.graph
    logits = graph.cast(layer.linear(x, "router"), "float32")
    if config.router_logit_bias:
        logits = graph.add(logits, layer.vector("router_logit_bias"))
    scores = _scores(layer, graph.capped(logits, config.router_logit_softcapping))
    choice = graph.add(scores, layer.vector("router_bias")) if config.router_bias else scores
    if config.n_group > 1:
        choice = _in_best_groups(layer, choice)
    _, chosen = _best(layer, choice, config.num_experts_per_tok)
    share = graph.op("GatherElements", scores, chosen, axis=1, width=config.num_experts_per_tok)
    if config.norm_topk_prob:
        whole = graph.op("ReduceSum", share, graph.ints(-1), keepdims=1, width=1)
        share = graph.binary("Div", share, graph.add(whole, config.norm_topk_eps))
    return chosen, graph.mul(share, config.routed_scaling_factor)


def _scores(layer: Layer, logits: Value) -> Value:
    graph, scoring = layer.graph, layer.config.router_scoring
    if scoring == "softmax":
        return graph.op("Softmax", logits, axis=-1)
    return graph.op("Sqrt", softplus(graph, logits)) if scoring == "sqrtsoftplus" else sigmoid(graph, logits)


def _best(layer: Layer, x: Value, count: int) -> tuple[Value, Value]:
    """The largest `count` values of the last axis, in order, and where they are."""
    values, places = layer.graph.ops("TopK", x, layer.graph.ints(count), outputs=2, axis=-1, width=count)
    return values, places._replace(dtype="int64")


def _in_best_groups(layer: Layer, choice: Value) -> Value:
    """The scores, -inf for experts outside of the best groups."""
    config, graph = layer.config, layer.graph
    each = config.num_experts // config.n_group
    grouped = graph.reshape(choice, -1, config.n_group, each)
    counted = 2 if config.group_score == "top2" else 1
    best, _ = _best(layer, grouped, counted)
    score = graph.op("ReduceSum", best, graph.ints(-1), keepdims=0, width=config.n_group)
    _, kept = _best(layer, score, config.topk_group)
    out = graph.mul(graph.op("OneHot", kept, graph.ints(config.n_group), graph.constant([0.0, 1.0], "float32"),
                             dtype="float32", width=config.n_group), 1.0)  # fmt: skip
    inside = graph.op("ReduceSum", out, graph.ints(1), keepdims=0, width=config.n_group)
    shown = graph.op(
        "Greater", graph.reshape(inside, -1, config.n_group, 1), graph.constant(0.0, "float32"), dtype="bool"
    )
    hidden = graph.constant(-np.inf, "float32")
    return graph.reshape(graph.op("Where", shown, grouped, hidden, dtype="float32"), -1, config.num_experts)
