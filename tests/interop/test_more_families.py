"""Tiny checkpoints that megatron-core 0.16.1 saved for the families without a large one: every engine computes its
logits from what crossdock makes of them, and formats that lack the model refuse it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crossdock.delivery as delivery
import models
from crossdock.errors import PlanError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from megatron_writers import Ranks, write_ranks, write_torch_dist
from oracles import megatron_names
from oracles.files import hf_hashes
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits

DATA = Path(__file__).parents[1] / "data/families"
# checkpoint -> its family, and how far llama.cpp is: 5e-3 where it looks gelu up in a table of half precision
LEAVES = {"starcoder-v016-dist-tp2-fp32": ("starcoder", 5e-3)}
# those that no other format has: checkpoint -> its family, and what is said
STAYS = {
    "gpt-gated-v016-dist-tp2-fp32": ("gpt", "an MLP without gate"),
    "gptnext-gated-v016-dist-tp2-fp32": ("gptnext", "with LayerNorm, rope and this MLP"),
}
FAMILY = {name: family for name, (family, _) in (LEAVES | STAYS).items()}


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
    with CheckpointWeights(opened, 8 << 20) as weights:
        got = np.stack([forward(opened.config, weights, row.tolist()) for row in np.load(root / "tokens.npy")])
    assert np.abs(got - np.load(root / "logits.npy")).max() <= 1e-5


@pytest.mark.parametrize("name", LEAVES)
def test_engines_compute_megatrons_logits(name: str, tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    root = checkpoint(name)
    tokens, expected = np.load(root / "tokens.npy"), np.load(root / "logits.npy")
    delivery.export(root, tmp_path / "hf", "hf", dtype="float32")
    assert np.abs(transformers_logits(tmp_path / "hf", tokens) - expected).max() <= 1e-5
    delivery.export(root, tmp_path / "m.gguf", "gguf", dtype="float32")
    assert np.abs(llama_logits(tmp_path / "m.gguf", tokens) - expected).max() <= LEAVES[name][1]


@pytest.mark.parametrize("name", STAYS)
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_what_a_format_has_no_model_for_is_refused(name: str, to: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(PlanError) as caught:
        delivery.plan(delivery.open(checkpoint(name)), to)
    assert STAYS[name][1] in caught.value.problems[0].what


@pytest.mark.parametrize("recipe", ["falcon", "falcon-new", "falcon-one-norm", "gemma", "gemma2"])
@pytest.mark.parametrize("form", ["dist", "stacked", "ranks"])
def test_in_megatrons_names(recipe: str, form: str, tmp_path: Path) -> None:
    """Megatron's args have no words for parallel attention, gated gelu and scaled embeddings: --family says it."""
    folder = models.make_hf(recipe, tmp_path / "hf", dtype="float32", vocab_size=204)
    state, args = megatron_names.falcon(folder) if recipe.startswith("falcon") else megatron_names.gemma(folder)
    root = tmp_path / "root"
    if form == "ranks":
        tp = 1 if recipe == "falcon" else 2
        write_ranks(
            root, state, args, Ranks((((0,),), ((1, 2),)), tp=tp, more_args=(("decoder_first_pipeline_num_layers", 1),))
        )
    else:
        write_torch_dist(root, state, args, stacked=form == "stacked")
    checkpoint = delivery.open(root, family=recipe.partition("-")[0])
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "back")
    assert hf_hashes(tmp_path / "back") == hf_hashes(folder)
    tokens = np.arange(40)[None] % 203
    np.testing.assert_array_equal(transformers_logits(tmp_path / "back", tokens), transformers_logits(folder, tokens))
