"""Every rounded step of the forward against PyTorch's own, bit for bit, and against what was frozen of it.

PyTorch's results depend on the processor: its own are compared where it has AVX-512, the frozen ones everywhere.
Products of matrices are compared with their rule, written otherwise: MKL keeps to it on Intel's processors only.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import crossdock.delivery as delivery
import crossdock.model.forward as module
from crossdock.model import mlp, rounding, sums, tensors
from crossdock.model.rounding import Array
from crossdock.model.work import multiply_adds
from crossdock.running.weights import CheckpointWeights
from support import hf_models
from support.decilm_model import ALL, make_decilm
from support.reference_logits import MEMORY

ROWS = 32
SIZES = (
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    11,
    15,
    16,
    17,
    24,
    31,
    33,
    48,
    64,
    100,
    127,
    128,
    129,
    250,
    257,
    300,
    384,
    1000,
    2050,
    4097,
)
GAMMA, BETA = (np.random.default_rng(seed).random(max(SIZES), np.float32) for seed in (1, 2))


def values(n: int) -> Array:
    """[32, n] from -16 to 16, near 0 most of them; made without a function whose last bit could vary."""
    uniform = np.random.default_rng(0).random((ROWS, n), np.float32) * 2 - 1
    return uniform * uniform * uniform * np.float32(16)


def angles(n: int) -> Array:
    """[32, n] from 0 to 4096."""
    return np.abs(values(n)) * np.float32(256)


def scores(n: int) -> Array:
    """With later positions hidden."""
    return np.where(np.arange(ROWS)[:, None] % n >= np.arange(n), values(n), np.float32(-np.inf))


def layer_norm(x: Array) -> Array:
    centre, variance = sums.moments(x)
    n = x.shape[1]
    return rounding.fma((x - centre) * (1 / np.sqrt(variance + 1e-5)), GAMMA[:n], BETA[:n])


def torch_layer_norm(x: torch.Tensor) -> torch.Tensor:
    n = x.shape[1]
    return functional.layer_norm(x, (n,), *(torch.from_numpy(part[:n]).to(x.dtype) for part in (GAMMA, BETA)), 1e-5)


def torch_rms_norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * torch.from_numpy(GAMMA[: x.shape[1]]).to(x.dtype)


def gate(x: torch.Tensor) -> torch.Tensor:
    """As it lies beside the other half of its matrix: torch ends a row otherwise than a whole array."""
    return torch.cat([x, x], -1)[:, : x.shape[1]]


# name: values, ours, PyTorch's, digest of ours of all sizes
STEPS: dict[
    str, tuple[Callable[[int], Array], Callable[[Array], Array], Callable[[torch.Tensor], torch.Tensor], str]
] = {
    "total": (values, sums.total, lambda x: torch.sum(x, -1, keepdim=True), "5cd93cdde8c43740"),
    "rms_norm": (values, lambda x: tensors.rms_norm(x, GAMMA[: x.shape[1]], 1e-6), torch_rms_norm, "09d1e3a811ae67f9"),
    "layer_norm": (values, layer_norm, torch_layer_norm, "19bfbb5cd7fbc49b"),
    "softmax": (values, tensors.softmax, lambda x: torch.softmax(x, -1), "b8878cc64fa5c558"),
    "softmax of scores": (scores, tensors.softmax, lambda x: torch.softmax(x, -1), "9e212ef7a86ad914"),
    "sigmoid": (values, mlp.sigmoid, torch.sigmoid, "e55ff849dfd6f2a0"),
    "silu": (values, lambda x: mlp.activation("silu", x), lambda x: functional.silu(gate(x)), "8bdefb74c24f752a"),
    "gelu": (values, lambda x: mlp.activation("gelu", x), functional.gelu, "8be270f1a2e85cac"),
    "relu2": (
        values,
        lambda x: mlp.activation("relu2", x),
        lambda x: torch.pow(functional.relu(x), 2),
        "7fbca4547a8122c8",
    ),
    "sine": (angles, rounding.sine, torch.sin, "d456a1c8bd738869"),
    "cosine": (angles, rounding.cosine, torch.cos, "bd1329f7b5d6c2a8"),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads end their shares of an array elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.usefixtures("one_thread")
def test_a_step_is_pytorchs(name: str) -> None:
    made, ours, theirs, _ = STEPS[name]
    same = torch.backends.cpu.get_cpu_capability() == "AVX512"
    for n in SIZES:
        x = made(n)
        got, expected = ours(x), theirs(torch.from_numpy(x)).numpy()
        assert got.dtype == np.float32
        np.testing.assert_allclose(
            got, expected, rtol=0 if same else 1e-5, atol=0 if same else 1e-5, err_msg=f"{n} values"
        )


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_same_on_every_processor(name: str) -> None:
    made, ours, _, digest = STEPS[name]
    assert hashlib.sha256(b"".join(ours(made(n)).tobytes() for n in SIZES)).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", [name for name in STEPS if "sine" not in name])  # angles are float32 always
def test_a_step_of_float64_is_plain(name: str) -> None:
    made, ours, theirs, _ = STEPS[name]
    for n in SIZES:
        x = made(n).astype(np.float64)
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).numpy(), rtol=1e-9, atol=1e-9)


PARTS = {1: [], 16: [], 384: [], 385: [193], 768: [384], 769: [384, 768], 1000: [384, 768]}


@pytest.mark.parametrize("k", PARTS)
def test_products_are_summed_in_order(k: int) -> None:
    a, b = values(k)[:5], values(k)[5:12].T
    expected = []
    for low, high in itertools.pairwise([0, *PARTS[k], k]):
        total = np.zeros((5, 7), np.float32)
        for i in range(low, high):
            total = (total + np.multiply.outer(a[:, i].astype(np.longdouble), b[i])).astype(np.float32)
        expected.append(total)
    np.testing.assert_array_equal(sums.product(a, b), sum(expected[1:], expected[0]), strict=True)


def test_products_of_any_width_are_of_the_same_sums() -> None:
    a, b = values(300)[:2], values(300)[np.arange(2000) % ROWS].T
    np.testing.assert_array_equal(sums.product(a, b), sums.product(a, b[:, :ROWS])[:, np.arange(2000) % ROWS])


@pytest.mark.parametrize("recipe", [*hf_models.RECIPES, "deepseek_v3 without q_lora", "decilm"])
def test_multiply_adds_are_those_of_the_forward(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0

    def product(a: Array, b: Array) -> Array:
        nonlocal counted
        counted += a.shape[0] * a.shape[1] * b.shape[1]
        return np.asarray(a @ b)

    recipe, _, without = recipe.partition(" without ")
    if recipe == "decilm":
        folder = make_decilm(tmp_path / recipe, ALL)
    else:
        more = {f"{without}_rank": None} if without else {}
        folder = hf_models.make_hf(recipe, tmp_path / recipe, dtype="float32", **more)
    monkeypatch.setattr(module, "product", product)
    checkpoint = delivery.open(folder)
    with CheckpointWeights(checkpoint, MEMORY) as weights:
        module.forward(checkpoint.config, weights, range(19))
    assert counted == multiply_adds(checkpoint.config, 19)


def test_large_forwards_multiply_with_blas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rule for a whole forward, also where the logits of a few positions are asked for."""
    checkpoint = delivery.open(hf_models.make_hf("llama", tmp_path / "llama", dtype="float32"))
    ids = range(19)
    with CheckpointWeights(checkpoint, MEMORY) as weights:
        small = module.forward(checkpoint.config, weights, ids)
        monkeypatch.setattr(module, "product", lambda a, b: pytest.fail("a product in order"))
        with pytest.raises(pytest.fail.Exception, match="in order"):
            module.forward(checkpoint.config, weights, ids)
        monkeypatch.setattr(module, "ORDERED", multiply_adds(checkpoint.config, len(ids)) - 1)
        x = module.hidden(checkpoint.config, weights, ids)
        large = module.logits(checkpoint.config, weights, x, slice(3, 4))
    assert np.abs(small[3:4] - large).max() <= 1e-5
