"""The MLP of a layer: plain or gated, one for all tokens or experts chosen by a router, with shared ones beside them.

Formulas: GLU variants (arXiv 2002.05202), squared ReLU (2109.08668), DeepSeek-V3's router (2412.19437). Knows no files.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.tensors import Array, Weights, linear, softmax

_erf = np.frompyfunc(math.erf, 1, 1)


def mlp(weights: Weights, config: ModelConfig, layer: int, x: Array) -> Array:
    """What the MLP of `layer` adds to the residual stream, for normed x [n, hidden_size]."""
    if layer in config.linear_mlp_layers:
        return linear(weights, x, "ffn_linear", layer)
    if layer not in config.moe_layers:
        return _one(weights, config, x, "ffn", layer, bias=config.mlp_bias)
    chosen, share = route(weights, config, layer, x)
    y = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        token, place = np.nonzero(chosen == expert)
        y[token] += share[token, place, None] * _one(weights, config, x[token], "exp", layer, expert)
    if config.shared_expert_intermediate_size:
        y += _one(weights, config, x, "shexp", layer)
    return y


def route(weights: Weights, config: ModelConfig, layer: int, x: Array) -> tuple[NDArray[np.int64], Array]:
    """The experts of every token and their weights, both [n, num_experts_per_tok]."""
    logits = linear(weights, x, "router", layer)
    scores = softmax(logits) if config.router_scoring == "softmax" else _sigmoid(logits)
    choice = scores + weights.whole("router_bias", layer) if config.router_bias else scores
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


def activation(name: str, x: Array) -> Array:
    """`hidden_act` of x: silu, gelu (exact), gelu_tanh, relu or relu2."""
    if name == "silu":
        return x * _sigmoid(x)
    if name == "gelu":
        return np.asarray(x * 0.5 * (1 + _erf(x * math.sqrt(0.5)).astype(x.dtype)))
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    kept = np.maximum(x, 0)
    return kept * kept if name == "relu2" else kept


def _one(
    weights: Weights, config: ModelConfig, x: Array, kind: str, layer: int, expert: int | None = None, *,
    bias: bool = False,
) -> Array:  # fmt: skip
    up = linear(weights, x, f"{kind}_up", layer, expert, bias=bias)
    if config.mlp_gated:
        up *= activation(config.hidden_act, linear(weights, x, f"{kind}_gate", layer, expert, bias=bias))
    else:
        up = activation(config.hidden_act, up)
    return linear(weights, up, f"{kind}_down", layer, expert, bias=bias)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))
