"""The MLP of a layer: plain or gated, one for all tokens or experts chosen by a router, with shared ones beside them.

Formulas: GLU variants (arXiv 2002.05202), squared ReLU (2109.08668), DeepSeek-V3's router (2412.19437). Knows no files.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossdock.model.erf import erf_of_root_half
from crossdock.model.rounding import Array, exp, fma, precisely
from crossdock.model.sums import total
from crossdock.model.tensors import Model, linear, softmax


def mlp(model: Model, layer: int, x: Array) -> Array:
    """What the MLP of `layer` adds to the residual stream, for normed x [n, hidden_size]."""
    config = model.config
    if layer in config.linear_mlp_layers:
        return linear(model, x, "ffn_linear", layer)
    if layer not in config.moe_layers:
        return _one(model, x, "ffn", layer, bias=config.mlp_bias)
    chosen, share = route(model, layer, x)
    y = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        token, place = np.nonzero(chosen == expert)
        y[token] += _one(model, x[token], "exp", layer, expert, share=share[token, place, None])
    if config.shared_expert_intermediate_size:
        y += _one(model, x, "shexp", layer)
    return y


def route(model: Model, layer: int, x: Array) -> tuple[NDArray[np.int64], Array]:
    """The experts of every token and their weights, both [n, num_experts_per_tok]."""
    config = model.config
    logits = linear(model, x, "router", layer)
    scores = softmax(logits) if config.router_scoring == "softmax" else sigmoid(logits)
    choice = scores + model.weights.whole("router_bias", layer) if config.router_bias else scores
    if config.n_group > 1:
        grouped = choice.reshape(len(x), config.n_group, -1)
        best = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)  # a group counts by its two best experts
        kept = np.argsort(-best, axis=-1, kind="stable")[:, : config.topk_group]
        mask = np.full_like(grouped, -np.inf)
        np.put_along_axis(mask, kept[..., None], 0.0, axis=1)
        choice = (grouped + mask).reshape(len(x), -1)
    chosen = np.argsort(-choice, axis=-1, kind="stable")[:, : config.num_experts_per_tok]
    share = np.take_along_axis(scores, chosen, axis=-1)
    if config.norm_topk_prob and config.router_scoring == "softmax":
        share = softmax(np.take_along_axis(logits, chosen, axis=-1))  # the same as dividing by their sum
    elif config.norm_topk_prob:
        share = share / (total(share) + 1e-20)
    return chosen, share * config.routed_scaling_factor


def activation(name: str, x: Array) -> Array:
    """`hidden_act` of x: silu, gelu (exact), gelu_tanh, relu or relu2."""
    if name == "silu":
        return x / (1 + exp(-x, whole=32))
    if name == "gelu":
        return np.asarray(x * (1 + erf_of_root_half(x)) * 0.5)
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + precisely(np.tanh, math.sqrt(2 / math.pi) * fma(0.044715, x * x * x, x))))
    kept = np.maximum(x, 0)
    return kept * kept if name == "relu2" else kept


def _one(
    model: Model, x: Array, kind: str, layer: int, expert: int | None = None, *,
    bias: bool = False, share: Array | None = None,
) -> Array:  # fmt: skip
    """`share` multiplies what comes out, which is the same as what goes into the last matrix."""
    config = model.config
    up = linear(model, x, f"{kind}_up", layer, expert, bias=bias)
    if config.mlp_gated:
        up *= activation(config.hidden_act, linear(model, x, f"{kind}_gate", layer, expert, bias=bias))
    else:
        up = activation(config.hidden_act, up)
    if share is not None:
        up *= share
    return linear(model, up, f"{kind}_down", layer, expert, bias=bias)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return np.asarray(1 / (1 + exp(-x)))
