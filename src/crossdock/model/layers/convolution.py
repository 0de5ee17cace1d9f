"""Causal convolutions over positions, one kernel a channel, and the gated short convolution of LFM2.

Formulas: transformers 5.24 (lfm2, mamba). Knows no files.
"""

from __future__ import annotations

import numpy as np

from crossdock.model.layers.layer import Array, Layer, activation


def causal_convolution(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """x [n, channels], kernel [channels, width]: each channel's last `width` values, the latest times the last."""
    width = kernel.shape[1]
    padded = np.concatenate([np.zeros((width - 1, x.shape[1]), x.dtype), x])
    y = sum(padded[i : i + len(x)] * kernel[:, i] for i in range(width))
    return np.asarray(y if bias is None else y + bias)


def convolved(layer: Layer, x: Array, name: str, *, bias: bool = False) -> Array:
    """silu of x [n, channels] convolved with the kernels `name`."""
    kernel = layer.tensor(name).reshape(x.shape[1], -1)
    added = layer.tensor(f"{name}_bias").reshape(-1) if bias else None
    return activation("silu", causal_convolution(x, kernel, added))


def short_convolution(layer: Layer, x: Array) -> Array:
    """What LFM2's convolution adds to the residual stream, for normed x [n, hidden_size]."""
    bias = layer.config.short_conv_bias
    b, c, value = (layer.linear(x, name, bias=bias) for name in ("conv_b", "conv_c", "conv_x"))
    added = layer.tensor("conv_kernel_bias") if bias else None
    y = c * causal_convolution(b * value, layer.tensor("conv_kernel"), added)
    return layer.linear(y, "conv_o", bias=bias)
