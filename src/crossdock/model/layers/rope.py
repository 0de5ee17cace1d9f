"""Rotary positions: the angles of every scaling that the families use, and the rotation of halves or of neighbours.

Formulas: RoFormer (arXiv 2104.09864), YaRN (2309.00071), transformers `modeling_rope_utils.py` 5.0. Frequencies and
angles are float32, as models were trained with: at position 4,000 exact angles give other logits. Knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.layer import Array


class Rotation(NamedTuple):
    """Cosines and sines, float32 [n, rotary_dim / 2]; `interleaved`: neighbours form a pair, else the two halves."""

    cos: Array
    sin: Array
    interleaved: bool


def rotation(config: ModelConfig, n: int) -> Rotation:
    """The rotation of positions 0 to n - 1. YaRN's attention factor is in the cosines and sines."""
    latent = config.kv_lora_rank > 0
    dim = config.qk_rope_head_dim if latent else int(config.head_dim * config.partial_rotary_factor)
    frequencies, magnitude = _frequencies(config, dim)
    angles = np.outer(np.arange(n, dtype=np.float32), frequencies).astype(np.float64)
    cos, sin = (np.asarray(f(angles) * magnitude, np.float32) for f in (np.cos, np.sin))
    return Rotation(cos, sin, latent)


def rotate(x: Array, by: Rotation) -> Array:
    """Rotate the first rotary_dim values of x [n, ..., dim]; the others pass unchanged.

    Neighbours come out as two halves: scores are the same, since queries and keys are turned alike.
    """
    dim = 2 * by.cos.shape[1]
    shape = (x.shape[0], *(1,) * (x.ndim - 2), dim // 2)
    cos, sin = by.cos.reshape(shape), by.sin.reshape(shape)
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if by.interleaved else (slice(dim // 2), slice(dim // 2, dim))
    a, b = x[..., first], x[..., second]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., dim:]], axis=-1)


def magnitude_of(factor: float, scale: float) -> float:
    """YaRN's `get_mscale`: what a context `factor` times as long multiplies attention's logits' root by."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def llama3_divisors(config: ModelConfig, dim: int) -> NDArray[np.float64]:
    """What Llama 3.1 divides the frequencies by, [dim / 2]: 1 for short waves, `factor` for long ones."""
    frequencies = config.rope_theta ** (-np.arange(0, dim, 2) / dim)
    return frequencies / _llama3(config.rope_scaling, frequencies)


def _llama3(scaling: Mapping[str, float], frequencies: Array) -> Array:
    """Short waves stay, long ones become `factor` times as long, those between are blended."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = 2 * math.pi / frequencies
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return np.asarray((1 - smooth) * frequencies / scaling["factor"] + smooth * frequencies)


def _frequencies(config: ModelConfig, dim: int) -> tuple[Array, float]:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / dim  # every step is rounded to float32, as in torch
    frequencies = 1 / (config.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    scaling = config.rope_scaling
    if config.rope_type == "linear":
        return frequencies / scaling["factor"], 1.0
    if config.rope_type == "llama3":
        return _llama3(scaling, frequencies), 1.0
    if config.rope_type == "yarn":
        return _yarn(config, frequencies, dim), _yarn_magnitude(config)
    return frequencies, 1.0


def _yarn(config: ModelConfig, frequencies: Array, dim: int) -> Array:
    scaling = config.rope_scaling
    context = scaling.get("original_max_position_embeddings") or config.max_position_embeddings

    def dimension(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    kept = 1 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low if high != low else 0.001), 0, 1)
    return np.asarray(frequencies * kept + frequencies / scaling["factor"] * (1 - kept))


def _yarn_magnitude(config: ModelConfig) -> float:
    scaling = config.rope_scaling
    factor, attention_factor = scaling["factor"], scaling.get("attention_factor")
    if attention_factor is not None:
        return attention_factor
    scale, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if scale and over:
        return magnitude_of(factor, scale) / magnitude_of(factor, over)
    return magnitude_of(factor, 1.0)
