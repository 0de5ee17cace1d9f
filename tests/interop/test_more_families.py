"""Tiny checkpoints that megatron-core 0.16.1 saved for the families without a large one: every engine computes its
logits from what crossdock makes of them, and formats that lack the model refuse it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crossdock.delivery as delivery
from crossdock.errors import PlanError
from oracles import megatron_names
from oracles.files import hf_hashes
from oracles.llama_engine import llama_logits
from oracles.megatron_state import global_state
from oracles.transformers_engine import transformers_logits
from support import hf_models
from support.decilm_model import decilm_logits
from support.megatron_writers import Ranks, write_ranks, write_torch_dist
from support.reference_logits import FLOAT32, reference_logits, relative

DATA = Path(__file__).parents[1] / "data/families"
UNEVEN = (("decoder_first_pipeline_num_layers", 1),)
# checkpoint -> its family; how far llama.cpp may be (5e-3 where it looks gelu up in a table of half precision);
# or what is said where a format has does not support this model
FAMILY = {
    "starcoder-v016-dist-tp2-fp32": "starcoder",
    "starcoder2-v016-dist-tp2-fp32": "starcoder2",
    "stablelm-v016-dist-tp2-fp32": "stablelm",
    "gpt_neox-v016-dist-tp2-fp32": "gpt_neox",
    "gpt-gated-v016-dist-tp2-fp32": "gpt",
    "gptnext-gated-v016-dist-tp2-fp32": "gptnext",
    "nemotron_nas-v016-dist-tp2-fp32": "nemotron_nas",
    "nemotron_nas-all-v016-legacy-tp2-fp32": "nemotron_nas",
}
LLAMA_CPP = {
    "starcoder-v016-dist-tp2-fp32": 5e-3,
    "starcoder2-v016-dist-tp2-fp32": 5e-3,
    "gpt_neox-v016-dist-tp2-fp32": 5e-3,
    "stablelm-v016-dist-tp2-fp32": 1e-4,
    "nemotron_nas-v016-dist-tp2-fp32": 1e-4,
}
REFUSED = {
    ("gpt-gated-v016-dist-tp2-fp32", "hf"): "an MLP without gate",
    ("gpt-gated-v016-dist-tp2-fp32", "gguf"): "an MLP without gate",
    ("gptnext-gated-v016-dist-tp2-fp32", "hf"): "with LayerNorm, rope and this MLP",
    ("gptnext-gated-v016-dist-tp2-fp32", "gguf"): "with LayerNorm, rope and this MLP",
    ("nemotron_nas-all-v016-legacy-tp2-fp32", "gguf"): "no matrix in place of an MLP",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in tests/data/families -> the folder, unpacked once."""
    base = tmp_path_factory.mktemp("families")

    def unpacked(name: str) -> Path:
        if not (base / name).exists():
            with tarfile.open(DATA / f"{name}.tar.xz") as archive:
                archive.extractall(base, filter="data")
        return base / name

    return unpacked


def test_every_checkpoint_is_tested() -> None:
    assert {file.name.removesuffix(".tar.xz") for file in DATA.glob("*.tar.xz")} == set(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
def test_the_reference_forward_computes_megatrons_logits(name: str, checkpoint: Callable[[str], Path]) -> None:
    root = checkpoint(name)
    opened = delivery.open(root)
    assert opened.config.family == FAMILY[name]
    got = reference_logits(root, np.load(root / "tokens.npy"))
    assert relative(got, np.load(root / "logits.npy")) <= FLOAT32


@pytest.mark.parametrize("name", [name for name in FAMILY if (name, "hf") not in REFUSED])
def test_transformers_computes_megatrons_logits(name: str, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    root = checkpoint(name)
    delivery.export(root, tmp_path / "hf", "hf", dtype="float32")
    logits = decilm_logits if FAMILY[name] == "nemotron_nas" else transformers_logits
    got = logits(tmp_path / "hf", np.load(root / "tokens.npy"))
    assert relative(got, np.load(root / "logits.npy")) <= FLOAT32


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_llama_cpp_computes_megatrons_logits(name: str, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    root = checkpoint(name)
    delivery.export(root, tmp_path / "m.gguf", "gguf", dtype="float32")
    got = llama_logits(tmp_path / "m.gguf", np.load(root / "tokens.npy"))
    assert np.abs(got - np.load(root / "logits.npy")).max() <= LLAMA_CPP[name]


@pytest.mark.parametrize(("name", "to"), REFUSED)
def test_what_a_format_has_no_model_for_is_refused(name: str, to: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(PlanError) as caught:
        delivery.plan(delivery.open(checkpoint(name)), to)
    assert REFUSED[name, to] in caught.value.problems[0].what


@pytest.mark.parametrize("tp", [2, 4])
def test_one_kv_head_over_several_ranks(tp: int, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    """Every rank saves an equal share of linear_qkv's rows: the key may lie in the middle of one."""
    whole = checkpoint("starcoder-v016-dist-tp2-fp32")
    state, args = global_state(whole)
    root = write_ranks(tmp_path / "root", state, args, Ranks((((0,),), ((1, 2),)), tp=tp, more_args=UNEVEN))
    for source, out in ((whole, tmp_path / "a"), (root, tmp_path / "b")):
        delivery.export(source, out, "hf")
    assert hf_hashes(tmp_path / "b") == hf_hashes(tmp_path / "a")


@pytest.mark.parametrize("recipe", ["falcon", "falcon-new", "falcon-one-norm", "gemma", "gemma2"])
@pytest.mark.parametrize("form", ["dist", "stacked", "ranks"])
def test_in_megatrons_names(recipe: str, form: str, tmp_path: Path) -> None:
    """Megatron's args have no words for parallel attention, gated gelu and scaled embeddings: --family says it."""
    folder = hf_models.make_hf(recipe, tmp_path / "hf", dtype="float32", vocab_size=204)
    state, args = megatron_names.falcon(folder) if recipe.startswith("falcon") else megatron_names.gemma(folder)
    root = tmp_path / "root"
    if form == "ranks":
        write_ranks(root, state, args, Ranks((((0,),), ((1, 2),)), tp=2, more_args=UNEVEN))
    else:
        write_torch_dist(root, state, args, stacked=form == "stacked")
    checkpoint = delivery.open(root, family=recipe.partition("-")[0])
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "back")
    assert hf_hashes(tmp_path / "back") == hf_hashes(folder)
    tokens = np.arange(40)[None] % 203
    np.testing.assert_array_equal(transformers_logits(tmp_path / "back", tokens), transformers_logits(folder, tokens))
