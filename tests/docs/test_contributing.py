"""The family that CONTRIBUTING.md adds in ten minutes, as the page says it, against transformers and llama.cpp."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from crossdock import delivery
from crossdock.errors import PlanError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.files import hf_hashes
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits
from support.reference_logits import FLOAT32, relative

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
TOKENS = np.random.default_rng(3).integers(3, 150, (2, 12))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's only TOML, as the file that it names."""
    (body,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("family") / "my_phi3.toml"
    path.write_text(body)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Phi-3 made by transformers, norms and all at random."""
    torch = pytest.importorskip("torch")
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=128, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
        initializer_range=0.1,
    )  # fmt: skip
    model = Phi3ForCausalLM(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.copy_(1 + 0.3 * torch.randn_like(value))
    path = tmp_path_factory.mktemp("phi3") / "hf"
    model.save_pretrained(path)
    return path


def test_the_reference_forward_computes_transformers_logits(family: str, folder: Path) -> None:
    checkpoint = delivery.open(folder, family=family)
    with CheckpointWeights(checkpoint, 8 << 20) as weights:
        got = np.stack([forward(checkpoint.config, weights, row.tolist()) for row in TOKENS])
    assert relative(got, transformers_logits(folder, TOKENS)) <= FLOAT32


def test_llama_cpp_computes_transformers_logits(family: str, folder: Path, tmp_path: Path) -> None:
    plan = delivery.plan(delivery.open(folder, family=family), "gguf")
    delivery.run(plan, tmp_path / "model.gguf")
    got = llama_logits(tmp_path / "model.gguf", TOKENS)
    assert relative(got, transformers_logits(folder, TOKENS)) <= 1e-4


def test_it_comes_back_from_gguf_as_it_was(family: str, folder: Path, tmp_path: Path) -> None:
    delivery.run(delivery.plan(delivery.open(folder, family=family), "gguf"), tmp_path / "model.gguf")
    delivery.run(delivery.plan(delivery.open(tmp_path / "model.gguf", family=family), "hf"), tmp_path / "back")
    assert hf_hashes(tmp_path / "back") == hf_hashes(folder)


def test_a_target_that_the_file_does_not_name_is_refused(family: str, folder: Path) -> None:
    with pytest.raises(PlanError, match="trtllm"):
        delivery.plan(delivery.open(folder, family=family), "trtllm")
