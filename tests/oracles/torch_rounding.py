"""The reference forward with the roundings of torch's float32: the same formulas, each operation rounded as torch does.

Products of matrices are summed one after the other, each with one rounding (a fused multiply-add): that is what MKL's
kernels for AVX-512 do, and what Megatron's stored logits were computed with. Norms, softmax, activations and angles
are torch's own, and where Megatron multiplies or adds in another order, so do these. No formula is another one than in
`crossdock.model`: what differs is the last bit of every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from crossdock.model import attention, forward, mlp, rope, tensors
from crossdock.model.config import ModelConfig
from crossdock.model.tensors import Array, Weights

ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: torch.pow(functional.relu(x), 2),
}


class Ordered(np.ndarray):
    """An array whose matrix products are summed in order; so are those of everything computed from it."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        plain = [i.view(np.ndarray) if isinstance(i, Ordered) else i for i in inputs]
        if ufunc is np.matmul:
            return _product(*plain).view(Ordered)
        if out:
            options["out"] = tuple(o.view(np.ndarray) if isinstance(o, Ordered) else o for o in out)
        made = getattr(ufunc, method)(*plain, **options)
        return made.view(Ordered) if isinstance(made, np.ndarray) else made

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        made = super().__array_function__(function, types, args, options)
        return made.view(Ordered) if type(made) is np.ndarray else made


def _product(a: Array, b: Array) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):  # a product of float32 is exact in float64, so that only the sum is rounded
        total = (total + np.multiply(a[:, k, None], b[k], dtype=np.float64)).astype(np.float32)
    return total


@dataclass(frozen=True)
class OrderedWeights:
    """The same weights; `forward` sums their products in order."""

    weights: Weights

    def whole(self, name: str, layer: int | None = None) -> Array:
        return self.weights.whole(name, layer)

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Array]:
        return (block.view(Ordered) for block in self.weights.blocks(name, layer, expert))

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Array:
        return self.weights.rows(name, numbers)


def round_as_torch(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone, the steps between the products are torch's."""
    for module, name, step in (
        (tensors, "rms_norm", _rms_norm),
        (attention, "rms_norm", _rms_norm),
        (forward, "norm", _norm),
        (attention, "softmax", _softmax),
        (mlp, "softmax", _softmax),
        (mlp, "activation", _activation),
        (mlp, "_sigmoid", lambda x: _ordered(torch.sigmoid(_tensor(x)))),
        (forward, "rotation", _rotation),
        (attention, "rotate", _rotate),
        (forward, "mlp", _mlp),
        (mlp, "route", _route),
    ):
        assert hasattr(module, name)
        patch.setattr(module, name, step)


def _tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.view(np.ndarray)))


def _ordered(x: torch.Tensor) -> Array:
    return x.numpy().view(Ordered)


def _rms_norm(x: Array, gamma: Array, eps: float) -> Array:
    t = _tensor(x)
    return _ordered(t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + eps) * _tensor(gamma))


def _norm(weights: Weights, config: ModelConfig, x: Array, name: str, layer: int | None = None) -> Array:
    gamma = weights.whole(name, layer)
    if config.norm == "rms":
        return _rms_norm(x, gamma, config.norm_eps)
    bias = _tensor(weights.whole(f"{name}_bias", layer)) if config.norm_bias else None
    return _ordered(functional.layer_norm(_tensor(x), (x.shape[-1],), _tensor(gamma), bias, config.norm_eps))


def _softmax(x: Array) -> Array:
    return _ordered(torch.softmax(_tensor(x), -1))


def _activation(name: str, x: Array) -> Array:
    """A gate lies beside the other half of its matrix: torch treats the end of a row otherwise than what is before."""
    t = _tensor(x)
    return _ordered(ACTIVATIONS[name](torch.cat([t, t], -1)[..., : x.shape[-1]] if name == "silu" else t))


def _rotation(config: ModelConfig, n: int) -> rope.Rotation:
    assert not config.rope_scaling
    plain = rope.rotation(config, n)
    dim = 2 * plain.cos.shape[1]
    frequencies = 1.0 / (config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    angles = torch.outer(torch.arange(n, dtype=torch.float32), frequencies).repeat(1, 2)
    cos, sin = (part[:, : dim // 2].numpy() for part in (angles.cos(), angles.sin()))
    return rope.Rotation(cos, sin, plain.interleaved)


def _rotate(x: Array, by: rope.Rotation) -> Array:
    """Megatron leaves neighbours in two halves, of queries and keys alike, so that only a sum's order differs."""
    out = rope.rotate(x, by)
    if by.interleaved:
        out = np.concatenate([out[..., 0::2], out[..., 1::2]], axis=-1)
    return out.view(Ordered)


def _mlp(weights: Weights, config: ModelConfig, layer: int, x: Array) -> Array:
    """As Megatron's experts round: a token's share of an expert multiplies what goes into its last matrix."""
    if layer not in config.moe_layers:
        return mlp.mlp(weights, config, layer, x)
    chosen, share = mlp.route(weights, config, layer, x)
    y = np.zeros_like(x)
    for expert in np.unique(chosen).tolist():
        token, place = np.nonzero(chosen == expert)
        up, gate = (tensors.linear(weights, x[token], f"exp_{part}", layer, expert) for part in ("up", "gate"))
        inner = mlp.activation(config.hidden_act, gate) * up * share[token, place, None]
        y[token] += tensors.linear(weights, inner, "exp_down", layer, expert)
    if config.shared_expert_intermediate_size:
        y = y + mlp._one(weights, config, x, "shexp", layer)
    return y


_routed = mlp.route


def _route(weights: Weights, config: ModelConfig, layer: int, x: Array) -> tuple[NDArray[np.int64], Array]:
    """The softmax is taken over the chosen logits."""
    chosen, share = _routed(weights, config, layer, x)
    if config.router_scoring == "softmax":
        logits = tensors.linear(weights, x, "router", layer)
        share = _softmax(np.take_along_axis(logits, chosen, axis=-1))
    return chosen, share
