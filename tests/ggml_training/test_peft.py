"""Adapters in the library that owns the format: transformers with PEFT on top computes what base + delta does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_engines import TOKENS, distance, gguf_weights, with_delta

import crossdock
from support.ggml_training_files import Floats, forward, random_file, read, write


def logits_of(base: Path, adapter: Path, tokens: list[int], *, merged: bool) -> Floats:
    """Of the Hugging Face model `base` with the adapter beside it, or merged into it by PEFT."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    with torch.no_grad():
        out: Floats = (model.merge_and_unload() if merged else model)(torch.tensor([tokens])).logits[0].numpy()
    return out


@pytest.mark.parametrize("name", ["l1-adam", "l3-lbfgs"])
def test_real_adapters(name: str, legacy: Path, tmp_path: Path) -> None:
    source, base = legacy / f"ggcl/{name}.ggcl", legacy / "support/base96.gguf"
    crossdock.export(base, tmp_path / "hf", "hf")
    crossdock.export(source, tmp_path / "peft", "peft")
    weights, lora = gguf_weights(base), read(source.read_bytes(), "ggcl").tensors
    wanted = forward(with_delta(weights, lora, norms=False), 1, 2, TOKENS)
    for merged in (False, True):
        assert distance(logits_of(tmp_path / "hf", tmp_path / "peft", TOKENS, merged=merged), wanted) < 1e-5
    assert np.abs(forward(weights, 1, 2, TOKENS) - wanted).max() > 1e-2


def test_a_rank_for_each_matrix(tmp_path: Path) -> None:
    """A random adapter, whose tensors have different ranks, on a random model."""
    rng = np.random.default_rng(3)
    sizes = {"n_vocab": 20, "n_embd": 16, "n_head": 2, "n_rot": 8, "n_layer": 2, "n_ff": 24}
    made = {kind: random_file(rng, kind, version, "adam", **sizes) for kind, version in (("ggcp", ""), ("ggcl", "1"))}
    assert len(set(made["ggcl"].ranks.values())) > 2
    for kind, one in made.items():
        one.tensors |= {name: values * np.float32(0.3) for name, values in one.tensors.items()}
        (tmp_path / kind).write_bytes(write(one))
    crossdock.export(tmp_path / "ggcp", tmp_path / "hf", "hf")
    crossdock.export(tmp_path / "ggcl", tmp_path / "peft", "peft")
    tokens = [1, 5, 9, 3, 2]
    weights = made["ggcp"].tensors
    wanted = forward(with_delta(weights, made["ggcl"].tensors, norms=False), 2, 2, tokens)
    assert distance(logits_of(tmp_path / "hf", tmp_path / "peft", tokens, merged=False), wanted) < 1e-5
    assert np.abs(forward(weights, 2, 2, tokens) - wanted).max() > 1e-2
