"""The router: which experts a token has, and with which weights.

Formulas: Mixtral (arXiv 2401.04088), DeepSeek-V2 and V3 (2405.04434, 2412.19437); transformers 5.24. Knows no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.layers.layer import Array, Layer, capped, sigmoid, softmax, softplus


def route(layer: Layer, x: Array) -> tuple[NDArray[np.int64], Array]:
    """The experts of every token of x [n, hidden_size] and their weights, both [n, num_experts_per_tok]."""
    config = layer.config
    logits = layer.linear(x, "router")
    if config.router_logit_bias:
        logits = logits + layer.tensor("router_logit_bias")
    scores = _scores(config.router_scoring, capped(logits, config.router_logit_softcapping))
    choice = scores + layer.tensor("router_bias") if config.router_bias else scores
    if config.n_group > 1:
        choice = _in_best_groups(layer, choice)
    chosen = np.argsort(-choice, axis=-1, kind="stable")[:, : config.num_experts_per_tok]
    share = np.take_along_axis(scores, chosen, axis=-1)
    if config.norm_topk_prob:
        share = share / (share.sum(axis=-1, keepdims=True) + config.norm_topk_eps)
    return chosen, share * config.routed_scaling_factor


def _scores(scoring: str, logits: Array) -> Array:
    if scoring == "softmax":
        return softmax(logits)
    return np.sqrt(softplus(logits)) if scoring == "sqrtsoftplus" else sigmoid(logits)


def _in_best_groups(layer: Layer, choice: Array) -> Array:
    """The scores, -inf for experts outside of the best groups."""
    config = layer.config
    grouped = choice.reshape(len(choice), config.n_group, -1)
    counted = 2 if config.group_score == "top2" else 1
    best = np.sort(grouped, axis=-1)[..., -counted:].sum(axis=-1)
    kept = np.argsort(-best, axis=-1, kind="stable")[:, : config.topk_group]
    mask = np.full_like(grouped, -np.inf)
    np.put_along_axis(mask, kept[..., None], 0.0, axis=1)
    return np.asarray((grouped + mask).reshape(choice.shape))
