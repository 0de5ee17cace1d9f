"""Selective state spaces: Mamba (a decay of each channel and state) and Mamba 2 (one of each head).

A state of each channel decays by a step that the position chooses, takes in the position's value times B, and is read
with C. Formulas: arXiv 2312.00752, 2405.21060; transformers 5.24. Knows no files.
"""

from __future__ import annotations

import numpy as np

from crossdock.model.config import ModelConfig
from crossdock.model.layers.convolution import convolved
from crossdock.model.layers.layer import Array, Layer, activation, softplus, unit_rms


def mamba(layer: Layer, x: Array) -> Array:
    """What Mamba adds to the residual stream, for normed x [n, hidden_size]."""
    config = layer.config
    gate = activation("silu", layer.linear(x, "ssm_z", bias=config.mamba_proj_bias))
    value = layer.linear(x, "ssm_x", bias=config.mamba_proj_bias)
    value = convolved(layer, value, "ssm_x_conv", bias=config.mamba_conv_bias)
    step, b, c = (_inner_norm(layer, layer.linear(value, f"ssm_{part}"), part) for part in ("dt_low", "b", "c"))
    step = _limited(config, softplus(layer.linear(step, "ssm_dt", bias=True)))
    decay = -np.exp(layer.tensor("ssm_a_log"))  # [channels, state]
    skip = layer.tensor("ssm_d")
    state, out = np.zeros_like(decay), np.empty_like(value)
    for i in range(len(x)):
        state = state * np.exp(step[i, :, None] * decay) + (step[i] * value[i])[:, None] * b[i]
        out[i] = state @ c[i] + skip * value[i]
    return layer.linear(out * gate, "ssm_o", bias=config.mamba_out_bias)


def mamba2(layer: Layer, x: Array) -> Array:
    """What Mamba 2 adds to the residual stream, for normed x [n, hidden_size]."""
    config = layer.config
    n, heads, groups = len(x), config.mamba_n_heads, config.mamba_n_groups
    x = x * config.ssm_in_multiplier
    parts = ("z", "x", "b", "c", "dt")
    multipliers = config.ssm_multipliers or (1.0,) * len(parts)
    z, value, b, c, step = (
        layer.linear(x, f"ssm_{part}", bias=config.mamba_proj_bias) * factor
        for part, factor in zip(parts, multipliers, strict=True)
    )
    value, b, c = (
        convolved(layer, part, f"ssm_{name}_conv", bias=config.mamba_conv_bias)
        for name, part in (("x", value), ("b", b), ("c", c))
    )
    value = value.reshape(n, heads, -1)
    b, c = (part.reshape(n, groups, -1).repeat(heads // groups, axis=1) for part in (b, c))
    step = _limited(config, softplus(step + layer.tensor("ssm_dt_bias").reshape(-1)))
    decay = np.exp(step * -np.exp(layer.tensor("ssm_a_log").reshape(-1)))  # [n, heads]
    skip = layer.tensor("ssm_d").reshape(-1)[:, None]
    state, out = np.zeros((heads, value.shape[2], b.shape[2]), x.dtype), np.empty_like(value)
    for i in range(n):
        state = state * decay[i, :, None, None] + (step[i, :, None] * value[i])[:, :, None] * b[i, :, None]
        out[i] = np.einsum("hds,hs->hd", state, c[i]) + skip * value[i]
    y = _gated_norm(layer, out.reshape(n, -1), activation("silu", z))
    return layer.linear(y, "ssm_o", bias=config.mamba_out_bias) * config.ssm_out_multiplier


def _gated_norm(layer: Layer, y: Array, gate: Array) -> Array:
    """The gate times y, and a norm in groups behind or before it."""
    config = layer.config
    if not config.mamba_rms_norm:
        return y * gate
    before = config.mamba_norm_before_gate
    groups = (y if before else y * gate).reshape(len(y), config.mamba_n_groups, -1)
    normed = unit_rms(groups, config.norm_eps).reshape(y.shape) * layer.tensor("ssm_norm").reshape(-1)
    return normed * gate if before else normed


def _inner_norm(layer: Layer, x: Array, part: str) -> Array:
    config = layer.config
    if config.mamba_inner_norms == "gamma":
        return layer.rms_norm(x, f"ssm_{part}_norm")
    if config.mamba_inner_norms == "unit":
        return unit_rms(x, config.norm_eps if config.inner_norm_eps is None else config.inner_norm_eps)
    return x


def _limited(config: ModelConfig, step: Array) -> Array:
    if not config.time_step_limit:
        return step
    least, most = config.time_step_limit
    return np.clip(step, least, most)
