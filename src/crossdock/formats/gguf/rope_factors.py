"""Rope frequency factors: the tensors that llama.cpp divides rope frequencies by, float32 [rotary dimension / 2].

Llama 3.1: transformers' `_compute_llama3_parameters`, llama.cpp's conversion/llama.py, `rope_freqs.weight`.
longrope: the lists of the configuration (conversion/phi.py), `rope_factors_long.weight`, `rope_factors_short.weight`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdock.model.config import ModelConfig
from crossdock.model.layers.rope import llama3_divisors

NAMES = ("rope_factors_long.weight", "rope_factors_short.weight")


def factors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """The tensors of factors that a model has: one for llama3, two for longrope, none for other kinds of rope."""
    if config.rope_type == "llama3":
        return {"rope_freqs.weight": llama3_factors(config)}
    if config.rope_type == "longrope":
        lists = (config.rope_scaling["long_factor"], config.rope_scaling["short_factor"])
        return {name: np.asarray(values, np.float32) for name, values in zip(NAMES, lists, strict=True)}
    return {}


def llama3_factors(config: ModelConfig) -> NDArray[np.float32]:
    """Divisors of the rope frequencies, float32 [rotary_dim / 2]: 1 for short waves, `factor` for long ones."""
    dim = int(config.head_dim * config.partial_rotary_factor)
    return llama3_divisors(config, dim).astype(np.float32)
