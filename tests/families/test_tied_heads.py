"""A head that is the embeddings, in architectures of which llama.cpp wants a head of its own: it is written besides."""

from __future__ import annotations

from pathlib import Path

import family_checks as checks
import pytest
from family_cases import case, write_folder

from oracles.files import read_gguf
from oracles.transformers_engine import transformers_logits

OWN_HEAD = ("apertus", "gpt_oss", "olmoe", "qwen2_moe", "sarvam_moe", "dots1", "nemotron", "olmo2", "mellum")


def tied(name: str, folder: Path) -> Path:
    """The case with a head that is the embeddings."""
    state = {tensor: values for tensor, values in case(name).state().items() if tensor != "lm_head.weight"}
    return write_folder(folder, case(name).config | {"tie_word_embeddings": True}, state)


@pytest.mark.parametrize("name", OWN_HEAD)
def test_a_tied_head_is_written_where_llama_cpp_wants_one(name: str, tmp_path: Path) -> None:
    tensors = read_gguf(checks.export(tied(name, tmp_path / "hf"), tmp_path / "m.gguf", "gguf")).tensors
    assert tensors["output.weight"].raw == tensors["token_embd.weight"].raw


def test_llama_cpp_computes_the_logits_of_a_tied_head(tmp_path: Path) -> None:
    folder = tied("qwen2_moe", tmp_path / "hf")
    model = checks.export(folder, tmp_path / "m.gguf", "gguf", dtype="float32")
    tokens = case("qwen2_moe").tokens
    logits = transformers_logits(folder, tokens)
    subject = checks.Subject("tied", folder, "qwen2_moe", tokens, logits, None, 1e-4)
    assert checks.llama_difference(model, subject) <= 1e-4
