"""llama.cpp against the reference forward on the same GGUF: of float32, of everything that is written, of every block.

llama.cpp rounds activations to 8 bits in blocks of 32 where weights are quantised. That costs as much as rounding the
weights to q8_0 does, which the reference forward tells; so its divergence has a bound that no luck moves: twice that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from test_hf_to_gguf import APPROXIMATE, LISTED, LISTED_MORE, RECIPES

import crossdock.delivery as delivery
from crossdock.codecs import registry as codecs
from crossdock.model.layers.layer import Array
from oracles.ggml_reference import ggml_quantize
from oracles.llama_engine import llama_logits
from oracles.rewriting import Gguf, rewrite_gguf
from support import hf_models
from support.reference_logits import reference_logits

TITLE = "quantised files: Kullback-Leibler divergence at the median position"
HALF = 1e-6  # what activations in half precision cost, where no row is whole blocks
TOKENS = np.random.default_rng(5).integers(0, 203, (2, 48))
BLOCKS = tuple(name for name in codecs.names() if codecs.get(name).block > 1)
WRITTEN = ("f16", "bf16", *(name for name in BLOCKS if codecs.get(name).encodes))
EVERY_KIND = ("llama", "gpt2", "deepseek_v3")  # recipes that are tried with every kind, the others with q8_0
WIDE = LISTED_MORE["deepseek3"] | {"kv_lora_rank": 256, "qk_nope_head_dim": 256, "v_head_dim": 256}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LISTED,
    "mixtral": LISTED | LISTED_MORE["mixtral"],
    "deepseek_v3": LISTED | WIDE,
    "gpt2": {"vocab_size": 320, "n_embd": 256, "n_inner": 512},
}


def reference(path: Path, config: Path | None = None) -> Array:
    return reference_logits(path, TOKENS, config=config)


def close(got: Array, expected: Array, bound: float) -> None:
    """Within `bound`, and the same likeliest token, unless two are as near as that."""
    assert np.abs(got - expected).max() <= bound
    chosen = np.take_along_axis(expected, got.argmax(-1)[..., None], -1)[..., 0]
    assert (expected.max(-1) - chosen).max() <= 2 * bound


def divergence(expected: Array, got: Array) -> float:
    """KL(expected ‖ got) in nats at the median position: a router that changes its mind at one is no fault."""
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (expected.astype(float), got.astype(float)))
    return float(np.median((np.exp(p) * (p - q)).sum(-1)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, hf_model: Callable[[str], Path]) -> Callable[[str, str], Path]:
    """(recipe, kind) -> the GGUF file, made once."""
    base = tmp_path_factory.mktemp("gguf")

    def export(recipe: str, kind: str) -> Path:
        out = base / f"{recipe}-{kind}.gguf"
        if not out.exists():
            how = {"dtype": kind} if kind in ("f32", "f16", "bf16") else {"quantize": kind}
            delivery.export(hf_model(recipe), out, "gguf", **how)
        return out

    return export


def config_of(recipe: str, hf_model: Callable[[str], Path]) -> Path | None:
    """Llama 3.1's scaling is in the file only as divisors, so the config has to come along."""
    return hf_model(recipe) / "config.json" if recipe == "llama3" else None


@pytest.mark.parametrize("recipe", RECIPES)
def test_float32(recipe: str, exported: Callable[[str, str], Path], hf_model: Callable[[str], Path]) -> None:
    file = exported(recipe, "f32")
    expected = reference(file, config_of(recipe, hf_model))
    np.testing.assert_array_equal(expected, reference(hf_model(recipe)))
    close(llama_logits(file, TOKENS), expected, 5e-3 if recipe.startswith(APPROXIMATE) else 1e-4)


@pytest.mark.parametrize(
    ("recipe", "kind"), [(r, kind) for r in RECIPES for kind in (WRITTEN if r in EVERY_KIND else ("q8_0",))]
)
def test_what_is_written(
    recipe: str,
    kind: str,
    exported: Callable[[str, str], Path],
    hf_model: Callable[[str], Path],
    table: list[tuple[str, ...]],
) -> None:
    config, source = config_of(recipe, hf_model), reference(hf_model(recipe))
    dequantised = reference(exported(recipe, kind), config)
    bound = 2 * divergence(source, reference(exported(recipe, "q8_0"), config)) + HALF
    got = llama_logits(exported(recipe, kind), TOKENS)
    lost, far, whole = divergence(source, dequantised), divergence(dequantised, got), divergence(source, got)
    assert far <= bound
    figures = f"lost {lost:.1e}", f"llama.cpp {far:.1e}, at most {bound:.1e}", f"together {whole:.1e}"
    table.append((recipe, kind, *figures))


def test_the_bound_tells_a_wrong_map(exported: Callable[[str, str], Path], tmp_path: Path) -> None:
    """The smallest of the faults that are planted in files: heads of q off by one in one layer of three."""

    def rolled(model: Gguf) -> None:
        model.put("blk.1.attn_q.weight", np.roll(model.array("blk.1.attn_q.weight"), 8, axis=0))

    rewrite_gguf(exported("llama", "q8_0"), tmp_path / "wrong.gguf", rolled)
    right = reference(exported("llama", "q8_0"))
    bound = 2 * divergence(reference(exported("llama", "f32")), right)
    assert divergence(right, llama_logits(tmp_path / "wrong.gguf", TOKENS)) > 20 * bound


def quantised(kind: str, model: Gguf) -> None:
    """Every matrix whose rows are whole blocks, by ggml's own quantiser."""
    codec = codecs.get(kind)
    for entry in model.tensors.values():
        array = entry[0]
        if array.ndim > 1 and array.shape[-1] % codec.block == 0 and array.size % 1024 == 0:
            nbytes = array.size // codec.block * codec.block_bytes
            values = np.ascontiguousarray(array, np.float32)
            entry[0] = ggml_quantize(values, kind, nbytes).reshape(*array.shape[:-1], -1)
            entry[1] = gguf.GGMLQuantizationType[kind.upper()]


def dequantised(model: Gguf) -> None:
    """Every tensor as float32, by gguf-py."""
    for entry in model.tensors.values():
        entry[0] = gguf.quants.dequantize(entry[0], entry[1])
        entry[1] = gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("recipe", SIZES)
def test_quantised_sources(recipe: str, kind: str, tmp_path: Path, wide: Callable[[str], Path]) -> None:
    """Read by crossdock block by block, and by gguf-py before: the same logits, and llama.cpp's of the latter."""
    blocks, plain = tmp_path / "blocks.gguf", tmp_path / "plain.gguf"
    rewrite_gguf(wide(recipe), blocks, partial(quantised, kind))
    rewrite_gguf(blocks, plain, dequantised)
    assert blocks.stat().st_size < plain.stat().st_size / 2
    expected = reference(blocks)
    np.testing.assert_array_equal(expected, reference(plain))
    close(llama_logits(plain, TOKENS), expected, 5e-3 if recipe == "gpt2" else 1e-4)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Recipe -> a float32 GGUF whose rows are whole blocks of 256, made once."""
    base = tmp_path_factory.mktemp("wide")

    def made(recipe: str) -> Path:
        out = base / f"{recipe}.gguf"
        if not out.exists():
            hf_models.make_hf(recipe, base / recipe, dtype="float32", **SIZES[recipe])
            delivery.export(base / recipe, out, "gguf", dtype="f32")
        return out

    return made
