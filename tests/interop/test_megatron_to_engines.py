"""Real Megatron checkpoints leave as Hugging Face and as GGUF; the real engines compute Megatron's own
logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import CHECKPOINTS, Answer
from oracles.files import hf_hashes, hf_state, read_gguf
from oracles.llama_engine import llama_logits
from oracles.megatron_state import megatron_state
from oracles.transformers_engine import transformers_logits
from support.reference_logits import FLOAT32, STORED, relative

ALL = (*CHECKPOINTS, "tiny-kjv")
TOKENIZER = Path(__file__).parents[2] / "examples/tiny-kjv-tokenizer"
FAMILIES = {"tiny": "llama", "deepseek": "deepseek_v3"}  # first word of the name, where it is not the family
# one set of weights each, saved by several writers in several layouts
TWINS = (
    tuple(name for name in CHECKPOINTS if name.startswith("llama-v0")),
    tuple(name for name in CHECKPOINTS if name.startswith("mixtral-")),
)
Export = Callable[[str, str], Path]


def family_of(name: str) -> str:
    first = name.split("-")[0]
    return FAMILIES.get(first, first)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Callable[[str], Path],
) -> Export:
    """(checkpoint, target) -> the float32 export, made once."""
    base = tmp_path_factory.mktemp("exported")

    def export(name: str, target: str) -> Path:
        out = base / f"{name}-hf" if target == "hf" else base / f"{name}.gguf"
        if not out.exists():
            dtype = {"hf": "float32", "gguf": "f32"}[target]
            with_tokenizer = ("--tokenizer", TOKENIZER) if name == "tiny-kjv" else ()
            source = megatron_checkpoint(name)
            crossdock("export", source, "--to", target, "-o", out, "--dtype", dtype, *with_tokenizer).ok()
        return out

    return export


def reference(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and Megatron's logits that lie beside a checkpoint."""
    return np.load(root / "tokens.npy"), np.load(root / "logits.npy")


def test_the_data_are_all_here() -> None:
    assert len(ALL) == 12
    assert [len(twins) for twins in TWINS] == [3, 2]


@pytest.mark.parametrize("name", ALL)
def test_tensors_are_those_that_torch_reads(
    name: str, exported: Export, megatron_checkpoint: Callable[[str], Path]
) -> None:
    expected = megatron_state(megatron_checkpoint(name), family_of(name))
    got = hf_state(exported(name, "hf"))
    assert sorted(got) == sorted(expected)
    different = [key for key, tensor in expected.items() if not np.array_equal(got[key], tensor)]
    assert not different


@pytest.mark.parametrize("name", ALL)
def test_transformers_computes_megatrons_logits(
    name: str, exported: Export, megatron_checkpoint: Callable[[str], Path]
) -> None:
    tokens, expected = reference(megatron_checkpoint(name))
    got = transformers_logits(exported(name, "hf"), tokens)
    assert got.shape == expected.shape
    assert relative(got, expected) <= STORED.get(name, FLOAT32)


@pytest.mark.parametrize("name", ALL)
def test_llama_cpp_computes_megatrons_logits(
    name: str, exported: Export, megatron_checkpoint: Callable[[str], Path]
) -> None:
    tokens, expected = reference(megatron_checkpoint(name))
    got = llama_logits(exported(name, "gguf"), tokens)
    assert got.shape == expected.shape
    # ggml's GELU is a float16 table
    assert np.abs(got - expected).max() <= (5e-3 if family_of(name) in ("gpt2", "nemotron") else 1e-4)
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("twins", TWINS, ids=lambda twins: twins[0].split("-")[0])
def test_every_layout_of_the_same_weights_gives_the_same_bytes(twins: tuple[str, ...], exported: Export) -> None:
    hashes = {name: hf_hashes(exported(name, "hf")) for name in twins}
    first = hashes[twins[0]]
    assert all(one == first for one in hashes.values())
    stored = {name: read_gguf(exported(name, "gguf")).tensors for name in twins}
    assert all(one == stored[twins[0]] for one in stored.values())


@pytest.mark.parametrize("name", ["llama-v019-dist-tp2pp2-bf16", "mixtral-v019-dist-tp2ep2pp2-bf16", "tiny-kjv"])
def test_auto_keeps_the_stored_dtype(
    name: str,
    tmp_path: Path,
    exported: Export,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Callable[[str], Path],
) -> None:
    crossdock("export", megatron_checkpoint(name), "--to", "hf", "-o", tmp_path / "auto").ok()
    assert {dtype for dtype, _, _ in hf_hashes(tmp_path / "auto").values()} == {"bfloat16"}
    # nothing is lost: the same values as in float32
    wide = hf_state(exported(name, "hf"))
    narrow = hf_state(tmp_path / "auto")
    assert all(np.array_equal(wide[key], narrow[key]) for key in wide)


@pytest.mark.parametrize("target", ["hf", "gguf"])
@pytest.mark.parametrize("name", ALL)
def test_verify_agrees(
    name: str,
    target: str,
    exported: Export,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Callable[[str], Path],
) -> None:
    crossdock("verify", exported(name, target), "--against", megatron_checkpoint(name)).ok()


def test_verify_sees_one_changed_byte(
    tmp_path: Path,
    exported: Export,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Callable[[str], Path],
) -> None:
    good = exported("qwen3-v019-dist-tp2pp2-fp32", "gguf").read_bytes()
    bad = bytearray(good)
    bad[-100] ^= 0x40
    (tmp_path / "bad.gguf").write_bytes(bad)
    source = megatron_checkpoint("qwen3-v019-dist-tp2pp2-fp32")
    assert crossdock("verify", tmp_path / "bad.gguf", "--against", source).code == 1
