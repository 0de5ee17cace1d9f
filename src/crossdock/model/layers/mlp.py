"""The MLP of a layer: plain or gated, one for all tokens or experts chosen by a router, with shared ones beside them.

Formulas: GLU variants (arXiv 2002.05202), squared ReLU (2109.08668), xIELU (2411.13010); transformers 5.24.
Knows no files.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from crossdock.model.layers.layer import Array, Layer, activation, sigmoid, softplus, unit_rms
from crossdock.model.layers.router import route


def mlp(layer: Layer, x: Array, stream: Array) -> Array:
    """What the MLP adds to the residual stream [n, hidden_size], for the normed x of it."""
    config = layer.config
    if layer.index in config.linear_mlp_layers:
        return layer.linear(x, "ffn_linear")
    if layer.index not in config.moe_layers:
        return _one(layer, x, "ffn")
    if config.moe_beside_mlp:
        routed = layer.norm(_experts(layer, layer.norm(stream, "exp_norm"), _scaled(layer, stream)), "exp_post_norm")
        return layer.norm(_one(layer, x, "ffn"), "ffn_post_norm_1") + routed
    y = _experts(layer, x, x)
    if config.shared_expert_intermediate_size:
        shared = _one(layer, x, "shexp")
        if config.shared_expert_gate:
            shared = shared * sigmoid(layer.linear(x, "shexp_router"))
        y = (y + shared) / 2 if config.shared_expert_average else y + shared
    return y


def _experts(layer: Layer, x: Array, to_router: Array) -> Array:
    """The sum of what each token's experts give, by their weights."""
    config = layer.config
    chosen, share = route(layer, to_router)
    if config.moe_beside_mlp:
        share = share * layer.tensor("exp_scale")[chosen]
    if config.moe_latent_size:
        x = layer.linear(x, "exp_latent_in", bias=config.mlp_bias)
    y = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        token, place = np.nonzero(chosen == expert)
        weight = share[token, place, None]
        if config.router_scales_input:
            y[token] += _one(layer, x[token] * weight, "exp", expert)
        else:
            y[token] += _one(layer, x[token], "exp", expert) * weight
    return layer.linear(y, "exp_latent_out", bias=config.mlp_bias) if config.moe_latent_size else y


def _scaled(layer: Layer, stream: Array) -> Array:
    """What the router of experts beside the MLP reads: the stream of unit size, times its own scale."""
    config = layer.config
    normed = unit_rms(stream, config.norm_eps)
    return np.asarray(normed * layer.tensor("router_scale") * config.hidden_size**-0.5)


def _one(layer: Layer, x: Array, kind: str, expert: int | None = None) -> Array:
    """One MLP on x [n, hidden_size]: the dense one ("ffn"), an expert ("exp") or the shared experts ("shexp")."""
    config = layer.config
    bias = config.mlp_bias if expert is None else config.expert_bias
    before, behind = config.mlp_multipliers or (1.0, 1.0)
    up = layer.linear(x, f"{kind}_up", bias=bias, expert=expert)
    if config.mlp_gated:
        gate = layer.linear(x, f"{kind}_gate", bias=bias, expert=expert) * before
        if config.activation_sparsity_pattern:
            gate = _sparse(gate, config.activation_sparsity_pattern[layer.index])
        if config.swiglu_limit is not None and (config.swiglu_limit_shared or expert is not None):
            gate = np.minimum(gate, config.swiglu_limit)
            up = np.clip(up, -config.swiglu_limit, config.swiglu_limit)
        up = (up + config.swiglu_offset) * _activated(layer, gate)
    else:
        up = _activated(layer, up)
    if config.sub_norms:
        up = layer.norm(up, f"{kind}_sub_norm")
    return layer.linear(up, f"{kind}_down", bias=bias, expert=expert) * behind


def _activated(layer: Layer, x: Array) -> Array:
    config = layer.config
    if config.hidden_act != "xielu":
        return activation(config.hidden_act, x, config.swiglu_alpha)
    beta, eps = layer.tensor("ffn_act_beta"), layer.tensor("ffn_act_eps")
    positive = softplus(layer.tensor("ffn_act_alpha_p"))
    negative = beta + softplus(layer.tensor("ffn_act_alpha_n"))
    below = (np.expm1(np.minimum(x, eps)) - x) * negative
    return np.asarray(np.where(x > 0, positive * x * x, below) + beta * x)


def _sparse(gate: Array, share: float) -> Array:
    """What of the gate lies above its `share` quantile, if it were normally distributed; 0 below."""
    if share <= 0:
        return gate
    spread = np.sqrt(np.mean((gate - gate.mean(axis=-1, keepdims=True)) ** 2, axis=-1, keepdims=True))
    cutoff = gate.mean(axis=-1, keepdims=True) + spread * NormalDist().inv_cdf(share)
    return np.asarray(np.maximum(gate - cutoff, 0))
