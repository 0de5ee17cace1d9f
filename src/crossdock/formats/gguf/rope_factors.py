"""Rope frequency factors: the tensor that llama.cpp divides rope frequencies by for Llama 3.1 models.

Formula: transformers `_compute_llama3_parameters`, and llama.cpp's converter which stores the divisors
(conversion/llama.py, `rope_freqs.weight`, float32 [rotary dimension / 2]).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.rope import llama3_divisors


def llama3_factors(config: ModelConfig) -> NDArray[np.float32]:
    """Divisors of the rope frequencies, float32 [rotary_dim / 2]: 1 for short waves, `factor` for long ones."""
    dim = int(config.head_dim * config.partial_rotary_factor)
    return llama3_divisors(config, dim).astype(np.float32)
