"""The MLP of a layer: plain or gated, one for all tokens or experts chosen by a router, with shared ones beside them.

Formulas: GLU variants (arXiv 2002.05202), squared ReLU (2109.08668), DeepSeek-V3's router (2412.19437). Knows no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.layers.layer import Array, Layer, activation, sigmoid, softmax


def mlp(layer: Layer, index: int, x: Array) -> Array:
    """What the MLP adds to the residual stream, for normed x [n, hidden_size]."""
    config = layer.config
    if index in config.linear_mlp_layers:
        return layer.linear(x, "ffn_linear")
    if index not in config.moe_layers:
        return _one(layer, x, "ffn", bias=config.mlp_bias)
    chosen, share = route(layer, x)
    y = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        token, place = np.nonzero(chosen == expert)
        y[token] += _one(layer, x[token], "exp", expert) * share[token, place, None]
    if config.shared_expert_intermediate_size:
        y += _one(layer, x, "shexp")
    return y


def route(layer: Layer, x: Array) -> tuple[NDArray[np.int64], Array]:
    """The experts of every token and their weights, both [n, num_experts_per_tok]."""
    config = layer.config
    logits = layer.linear(x, "router")
    scores = softmax(logits) if config.router_scoring == "softmax" else sigmoid(logits)
    choice = scores + layer.tensor("router_bias") if config.router_bias else scores
    if config.n_group > 1:
        grouped = choice.reshape(len(x), config.n_group, -1)
        best = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)  # a group counts by its two best experts
        kept = np.argsort(-best, axis=-1, kind="stable")[:, : config.topk_group]
        mask = np.full_like(grouped, -np.inf)
        np.put_along_axis(mask, kept[..., None], 0.0, axis=1)
        choice = (grouped + mask).reshape(len(x), -1)
    chosen = np.argsort(-choice, axis=-1, kind="stable")[:, : config.num_experts_per_tok]
    share = np.take_along_axis(scores, chosen, axis=-1)
    if config.norm_topk_prob:
        share = share / (share.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen, share * config.routed_scaling_factor


def _one(layer: Layer, x: Array, kind: str, expert: int | None = None, *, bias: bool = False) -> Array:
    """One MLP on x [n, hidden_size]: the dense one ("ffn"), an expert ("exp") or the shared experts ("shexp")."""
    config = layer.config
    up = layer.linear(x, f"{kind}_up", bias=bias, expert=expert)
    if config.mlp_gated:
        up *= activation(config.hidden_act, layer.linear(x, f"{kind}_gate", bias=bias, expert=expert))
    else:
        up = activation(config.hidden_act, up)
    return layer.linear(up, f"{kind}_down", bias=bias, expert=expert)
