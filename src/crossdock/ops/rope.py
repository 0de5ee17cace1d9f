"""Rope frequency factors: the tensor that llama.cpp divides rope frequencies by for Llama 3.1 models.

Formula: transformers `_compute_llama3_parameters`, and llama.cpp's converter which stores the divisors
(conversion/llama.py, `rope_freqs.weight`, float32 [rotary dimension / 2]).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig


def llama3_factors(config: ModelConfig) -> NDArray[np.float32]:
    """Divisors of the rope frequencies, float32 [rotary_dim / 2]: 1 for short waves, `factor` for long ones."""
    scaling = config.rope_scaling
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    dim = int(config.head_dim * config.partial_rotary_factor)
    factors = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * config.rope_theta ** (i / dim)
        if wave < context / high:
            factors.append(1.0)
        elif wave > context / low:
            factors.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)
