"""Rope frequency factors: the tensors that llama.cpp divides rope frequencies by, float32 [rotary dimension / 2].

Llama 3.1: transformers' `_compute_llama3_parameters`, llama.cpp's conversion/llama.py, `rope_freqs.weight`.
longrope: the lists of the configuration (conversion/phi.py), `rope_factors_long.weight`, `rope_factors_short.weight`.
proportional (Gemma 4): 1 of pairs that are rotated, 1e30 of the others (conversion/gemma.py), `rope_freqs.weight`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.rope import llama3_divisors

FREQUENCIES = "rope_freqs.weight"
LISTS = ("rope_factors_long.weight", "rope_factors_short.weight")
NAMES = (FREQUENCIES, *LISTS)
_STANDING = 1e30  # divides a frequency to nothing


def factors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """The tensors of factors that a model has: one for llama3 and proportional rope, two for longrope, else none."""
    if config.rope_type == "llama3":
        return {FREQUENCIES: llama3_factors(config)}
    if config.rope_type == "proportional":
        return {FREQUENCIES: proportional_factors(config)}
    if config.rope_type == "longrope":
        lists = (config.rope_scaling["long_factor"], config.rope_scaling["short_factor"])
        return {name: np.asarray(values, np.float32) for name, values in zip(LISTS, lists, strict=True)}
    return {}


def llama3_factors(config: ModelConfig) -> NDArray[np.float32]:
    """Divisors of the rope frequencies, float32 [rotary_dim / 2]: 1 for short waves, `factor` for long ones."""
    dim = int(config.head_dim * config.partial_rotary_factor)
    return llama3_divisors(config, dim).astype(np.float32)


def proportional_factors(config: ModelConfig) -> NDArray[np.float32]:
    """Divisors of the rope frequencies in layers without a window, float32 [head_dim / 2]: the first pairs rotate."""
    widths = config.head_dim_per_layer or (config.head_dim,) * config.num_hidden_layers
    head = next((w for layer, w in enumerate(widths) if config.layer_type(layer) == "full_attention"), config.head_dim)
    rotated = int(config.partial_rotary_factor * head) // 2
    return np.where(np.arange(head // 2) < rotated, 1, _STANDING).astype(np.float32)
