"""Rotary positions: the angles of every scaling that the families use, and the rotation of halves or of neighbours.

Formulas: RoFormer (arXiv 2104.09864), YaRN (2309.00071), LongRoPE (2402.13753), transformers 5.24
(`modeling_rope_utils.py`). Frequencies and angles are float32, as models were trained with: at position 4,000 exact
angles give other logits. Knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.layer import Array


class Rotation(NamedTuple):
    """Cosines and sines, float32 [n, rotary_dim / 2]; `interleaved`: neighbours form a pair, else the two halves."""

    cos: Array
    sin: Array
    interleaved: bool


class Frequencies(NamedTuple):
    """Radians a position of each pair, [rotary_dim / 2]; what multiplies cosines and sines; as `Rotation`."""

    radians: Array
    magnitude: float
    interleaved: bool


class Rope(NamedTuple):
    """What sets the angles of one layer: its base, its scaling, and how many values of a head are rotated.

    head  width of the head, of which the first `dim` values are rotated
    """

    theta: float
    kind: str
    scaling: Mapping[str, Any]
    dim: int
    head: int


def rotation(config: ModelConfig, layer: int, n: int) -> Rotation | None:
    """The rotation of positions 0 to n - 1 in `layer`, None where it has none.

    The attention factor of YaRN and LongRoPE is in the cosines and sines.
    """
    turning = frequencies(config, layer, n)
    if turning is None:
        return None
    angles = np.outer(np.arange(n, dtype=np.float32), turning.radians).astype(np.float64)
    cos, sin = (np.asarray(function(angles) * turning.magnitude, np.float32) for function in (np.cos, np.sin))
    return Rotation(cos, sin, turning.interleaved)


def frequencies(config: ModelConfig, layer: int, n: int) -> Frequencies | None:
    """The frequencies of `layer` in a text of n positions, None where it has no rope."""
    if config.position_embedding != "rope" or layer in config.nope_layers:
        return None
    radians, magnitude = _frequencies(config, _rope(config, layer), n)
    latent = config.kv_lora_rank > 0
    interleaved = latent if config.rope_interleaved is None else config.rope_interleaved
    return Frequencies(radians, magnitude, interleaved)


def rotate(x: Array, by: Rotation | None) -> Array:
    """Rotate the first rotary_dim values of x [n, ..., dim]; the others pass unchanged.

    Neighbours come out as two halves: scores are the same, since queries and keys are turned alike.
    """
    if by is None:
        return x
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


def _rope(config: ModelConfig, layer: int) -> Rope:
    head = config.head_dim_per_layer[layer] if config.head_dim_per_layer else config.head_dim
    theta, kind, scaling = config.rope_theta, config.rope_type, config.rope_scaling
    partial: float | None = config.partial_rotary_factor
    if config.rope_theta_per_layer:
        theta = config.rope_theta_per_layer[layer]
    if config.sliding_rope_theta is not None and config.layer_type(layer) == "sliding_attention":
        theta, kind, scaling = config.sliding_rope_theta, config.sliding_rope_type, config.sliding_rope_scaling
        own = config.sliding_partial_rotary_factor
        partial = partial if own is None else own
    if config.kv_lora_rank:
        sliding = config.sliding_kv_lora_rank and config.layer_type(layer) == "sliding_attention"
        width = config.sliding_qk_rope_head_dim if sliding else config.qk_rope_head_dim
        return Rope(theta, kind, scaling, width, width)
    return Rope(theta, kind, scaling, int(head * (1.0 if partial is None else partial)), head)


def _frequencies(config: ModelConfig, rope: Rope, n: int) -> tuple[Array, float]:
    """Radians a position of each pair, [rotary_dim / 2], and what multiplies cosines and sines."""
    scaling = rope.scaling
    if rope.kind == "proportional":  # pairs over the whole head, of which only the first rotate
        turning = _plain(rope.theta, rope.head)[: rope.dim // 2] / np.float32(scaling.get("factor", 1.0))
        return np.concatenate([turning, np.zeros(rope.head // 2 - len(turning), np.float32)]), 1.0
    if rope.kind == "dynamic":  # a base that grows with what is longer than the context
        longer = max(n, config.max_position_embeddings) / config.max_position_embeddings
        growth = scaling["factor"] * longer - (scaling["factor"] - 1)
        return _plain(rope.theta * growth ** (rope.dim / (rope.dim - 2)), rope.dim), 1.0
    frequencies = _plain(rope.theta, rope.dim)
    if rope.kind == "linear":
        return frequencies / scaling["factor"], 1.0
    if rope.kind == "llama3":
        return _llama3(scaling, frequencies), 1.0
    if rope.kind == "yarn":
        return _yarn(config, rope, frequencies), _yarn_magnitude(scaling)
    if rope.kind == "longrope":
        return _longrope(config, rope, n)
    return frequencies, 1.0


def _plain(theta: float, dim: int) -> Array:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / dim  # every step is rounded to float32, as in torch
    return np.asarray(1 / (theta ** exponents.astype(np.float64)).astype(np.float32))


def _llama3(scaling: Mapping[str, float], frequencies: Array) -> Array:
    """Short waves stay, long ones become `factor` times as long, those between are blended."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = 2 * math.pi / frequencies
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    return np.asarray((1 - smooth) * frequencies / scaling["factor"] + smooth * frequencies)


def _longrope(config: ModelConfig, rope: Rope, n: int) -> tuple[Array, float]:
    """A divisor of each pair; another list of them when the text is longer than the context of training."""
    scaling = rope.scaling
    context = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or config.max_position_embeddings / context
    divisors = np.asarray(scaling["long_factor" if n > context else "short_factor"], np.float32)
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / rope.dim
    powers = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
    return np.asarray(1 / (divisors * powers)), magnitude


def _yarn(config: ModelConfig, rope: Rope, frequencies: Array) -> Array:
    scaling, dim = rope.scaling, rope.dim
    context = scaling.get("original_max_position_embeddings") or config.max_position_embeddings

    def dimension(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    kept = 1 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low if high != low else 0.001), 0, 1)
    return np.asarray(frequencies * kept + frequencies / scaling["factor"] * (1 - kept))


def _yarn_magnitude(scaling: Mapping[str, Any]) -> float:
    factor, attention_factor = scaling["factor"], scaling.get("attention_factor")
    if attention_factor is not None:
        return float(attention_factor)
    scale, over = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if scale and over:
        return magnitude_of(factor, scale) / magnitude_of(factor, over)
    return magnitude_of(factor, 1.0)
