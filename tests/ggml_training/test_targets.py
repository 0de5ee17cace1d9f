"""A model of an old training checkpoint in every target, with the vocabulary that is given for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import crossdock
from crossdock.formats.gguf.container import read_header
from oracles.llama_engine import llama_logits
from support.ggml_training_files import random_file, read, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizers"))
import llama_vocab
from tokenizer_samples import hard_texts


def in_transformers(folder: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in texts]


def test_text_goes_along(legacy: Path, tmp_path: Path) -> None:
    """Ids of transformers on the folder are those of llama.cpp on the file, wherever the vocabulary came from."""
    source, vocabulary = legacy / "ggcp/a3-adam-ff44.ggcp", legacy / "support/vocab-tiny.gguf"
    checkpoint, texts = crossdock.open(source), hard_texts(("<s>",))
    for to in ("gguf", "hf"):
        crossdock.run(crossdock.plan(checkpoint, to, tokenizer=vocabulary), tmp_path / to)
        assert crossdock.verify(tmp_path / to, checkpoint, tokenizer=vocabulary).ok
    ids = llama_vocab.ask(tmp_path / "gguf", texts, add_special=True).ids
    assert in_transformers(tmp_path / "hf", texts) == ids
    model = crossdock.open(tmp_path / "gguf")
    crossdock.run(crossdock.plan(model, "hf"), tmp_path / "again")
    assert crossdock.verify(tmp_path / "again", model).ok
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    crossdock.run(crossdock.plan(model, "gguf", dtype="float16"), tmp_path / "small")
    kept = [read_header(path).metadata for path in (vocabulary, tmp_path / "small")]
    vocabularies = [{key: np.asarray(one[key]).tolist() for key in one if key.startswith("tokenizer.")} for one in kept]
    assert vocabularies[0] == vocabularies[1]
    crossdock.run(crossdock.plan(crossdock.open(tmp_path / "hf"), "gguf"), tmp_path / "back")
    assert llama_vocab.ask(tmp_path / "back", texts, add_special=True).ids == ids


def test_a_vocabulary_that_only_llama_cpp_has(legacy: Path, tmp_path: Path) -> None:
    """It stays behind with a warning when it came along, and is an error when it was asked for."""
    raw = (legacy / "support/base96.gguf").read_bytes()
    key = b"tokenizer.ggml.model"
    at = raw.index(key) + len(key) + 12
    assert raw[at : at + 5] == b"llama"
    (tmp_path / "other.gguf").write_bytes(raw[:at] + b"lamma" + raw[at + 5 :])
    plan = crossdock.plan(crossdock.open(tmp_path / "other.gguf"), "hf")
    assert any("no tokenizer in the folder: a vocabulary of the kind 'lamma'" in text for text in plan.warnings)
    with pytest.raises(crossdock.CrossdockError, match="of the kind 'lamma'"):
        crossdock.plan(crossdock.open(legacy / "ggcp/a3-adam-ff44.ggcp"), "hf", tokenizer=tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("to", "settings"),
    [("gguf", {"quantize": "q8_0"}), ("gguf", {"dtype": "bfloat16"}), ("hf", {"dtype": "float16"}),
     ("trtllm", {"tp": 2}), ("trtllm", {"dtype": "float16"})],
)  # fmt: skip
@pytest.mark.parametrize("name", ["ggcp/a1-adam-ff96.ggcp", "ggcl/l1-adam.ggcl"])
def test_every_target(name: str, to: str, settings: dict[str, Any], legacy: Path, tmp_path: Path) -> None:
    """The model itself, and an adapter merged into its model, come back as they were but for the rounding."""
    base = legacy / "support/base96.gguf" if "ggcl" in name else None
    checkpoint = crossdock.open(legacy / name, base=base)
    crossdock.run(crossdock.plan(checkpoint, to, **settings), tmp_path / "out")
    assert crossdock.verify(tmp_path / "out", checkpoint).ok
    statuses = {tensor.status for tensor in crossdock.diff(checkpoint, tmp_path / "out").tensors}
    assert statuses <= {"equal", "equal after cast"} | ({"different"} if "quantize" in settings else set())


def test_merged_into_tensors_that_hold_several(tmp_path: Path) -> None:
    """Rank files fuse query, key and value, whose pairs have ranks of their own: the same as by way of a folder."""
    sizes = {"n_vocab": 20, "n_embd": 16, "n_head": 2, "n_rot": 8, "n_layer": 2, "n_ff": 24}
    rng = np.random.default_rng(3)
    made = {kind: random_file(rng, kind, version, "adam", **sizes) for kind, version in (("ggcp", ""), ("ggcl", "1"))}
    assert len({made["ggcl"].ranks[f"w{letter}"] for letter in "qkv"}) > 1
    for kind, one in made.items():
        (tmp_path / kind).write_bytes(write(one))
    merged = crossdock.open(tmp_path / "ggcl", base=tmp_path / "ggcp")
    crossdock.run(crossdock.plan(merged, "trtllm", tp=2), tmp_path / "direct")
    crossdock.run(crossdock.plan(merged, "hf"), tmp_path / "hf")
    crossdock.run(crossdock.plan(crossdock.open(tmp_path / "hf"), "trtllm", tp=2), tmp_path / "two-steps")
    for name in ("rank0.safetensors", "rank1.safetensors"):
        one, other = (load_file(tmp_path / way / name) for way in ("direct", "two-steps"))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert crossdock.verify(tmp_path / "direct", merged).ok


def test_from_rank_files_into_llama_cpp(legacy: Path, tmp_path: Path) -> None:
    """Two steps on, the model still computes what the checkpoint's own tensors do."""
    source, tokens = legacy / "ggcp/a3-adam-ff44.ggcp", np.array([[1, 250, 17, 99, 40, 41, 3, 200]])
    crossdock.run(crossdock.plan(crossdock.open(source), "trtllm", tp=2), tmp_path / "ranks")
    crossdock.run(crossdock.plan(crossdock.open(tmp_path / "ranks"), "hf"), tmp_path / "hf")
    vocabulary = legacy / "support/vocab-tiny.gguf"
    crossdock.run(crossdock.plan(crossdock.open(tmp_path / "hf"), "gguf", tokenizer=vocabulary), tmp_path / "two")
    crossdock.run(crossdock.plan(crossdock.open(source), "gguf", tokenizer=vocabulary), tmp_path / "one")
    np.testing.assert_array_equal(llama_logits(tmp_path / "one", tokens), llama_logits(tmp_path / "two", tokens))
    assert read(source.read_bytes(), "ggcp").sizes["n_layer"] == 3
