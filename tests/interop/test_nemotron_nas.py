"""Models whose layers differ: block configurations of Hugging Face, llama.cpp's arrays, Megatron's own layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock.delivery as delivery
from crossdock.errors import ConfigError, PlanError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.files import hf_hashes, hf_state, read_gguf
from oracles.gguf_rules import llama3_divisors, rope_pairs
from oracles.llama_engine import llama_logits
from support import hf_models
from support.decilm_model import ALL, PLAIN, block, decilm_logits, make_decilm
from support.reference_logits import FLOAT32, relative

TOKENS = np.random.default_rng(2).integers(0, 203, (2, 40))


@pytest.fixture(scope="module")
def decilm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """ "plain" or "all" -> the folder, made once."""
    base = tmp_path_factory.mktemp("decilm")

    def made(name: str) -> Path:
        folder = base / name
        blocks = ALL if name == "all" else PLAIN
        return folder if folder.exists() else make_decilm(folder, blocks, scaled=name != "unscaled")

    return made


def reference(path: Path) -> np.ndarray:
    opened = delivery.open(path)
    with CheckpointWeights(opened, 8 << 20) as weights:
        return np.stack([forward(opened.config, weights, row.tolist()) for row in TOKENS])


@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_reference_forward_is_that_of_llama_layers(name: str, decilm: Callable[[str], Path]) -> None:
    assert relative(reference(decilm(name)), decilm_logits(decilm(name), TOKENS)) <= FLOAT32


@pytest.mark.parametrize("name", ["plain", "all"])
def test_hf_to_hf(name: str, tmp_path: Path, decilm: Callable[[str], Path]) -> None:
    delivery.export(decilm(name), tmp_path / "hf", "hf")
    assert hf_hashes(tmp_path / "hf") == hf_hashes(decilm(name))
    before, after = hf_models.read_config(decilm(name)), hf_models.read_config(tmp_path / "hf")
    lost = {"auto_map"}  # names remote code, which is never run
    assert {key: after.get(key) for key in before.keys() - lost - {"rope_scaling"}} == {
        key: before[key] for key in before.keys() - lost - {"rope_scaling"}
    }
    np.testing.assert_array_equal(decilm_logits(tmp_path / "hf", TOKENS), decilm_logits(decilm(name), TOKENS))


def test_gguf_holds_what_the_converter_writes(tmp_path: Path, decilm: Callable[[str], Path]) -> None:
    """Names, order of rows and arrays as in llama.cpp's conversion/deci.py."""
    delivery.export(decilm("plain"), tmp_path / "m.gguf", "gguf", dtype="float32")
    file, state = read_gguf(tmp_path / "m.gguf"), hf_state(decilm("plain"))
    config = hf_models.read_config(decilm("plain"))
    rope = config["rope_scaling"] | {"rope_theta": config["rope_theta"]}
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.linear_attn": "attn_output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    expected = {
        "token_embd.weight": state.pop("model.embed_tokens.weight"), "output.weight": state.pop("lm_head.weight"),
        "output_norm.weight": state.pop("model.norm.weight"), "rope_freqs.weight": llama3_divisors(rope, 16),
    }  # fmt: skip
    for name, tensor in state.items():
        _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
        if inner in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = rope_pairs(tensor, tensor.shape[0] // 16)
        expected[f"blk.{layer}.{names[inner]}.weight"] = tensor
    assert {name: t.shape for name, t in file.tensors.items()} == {name: t.shape for name, t in expected.items()}
    assert not [name for name, t in expected.items() if file.tensors[name].raw != np.ascontiguousarray(t).tobytes()]
    keys = {name.removeprefix("deci."): entry for name, entry in file.keys.items() if name.startswith("deci.")}
    assert {name: (kind, list(value)) for name, (kind, value) in keys.items() if kind == "ARRAY:INT32"} == {
        "attention.head_count": ("ARRAY:INT32", [4, 0, 4, 0, 4]),
        "attention.head_count_kv": ("ARRAY:INT32", [2, 0, 0, 0, 4]),
        "feed_forward_length": ("ARRAY:INT32", [256, 512, 256, 0, 512]),
    }
    assert {name: value for name, (kind, value) in keys.items() if kind == "UINT32"} == {
        "block_count": 5, "context_length": 96, "embedding_length": 64, "attention.key_length": 16,
        "attention.value_length": 16, "rope.dimension_count": 16, "vocab_size": 203,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "unscaled"])
def test_llama_cpp_computes_it_and_it_comes_back(name: str, tmp_path: Path, decilm: Callable[[str], Path]) -> None:
    delivery.export(decilm(name), tmp_path / "m.gguf", "gguf", dtype="float32")
    got = llama_logits(tmp_path / "m.gguf", TOKENS)
    assert np.abs(got - decilm_logits(decilm(name), TOKENS)).max() <= 1e-4
    # Llama 3.1's scaling is in the file as divisors only
    opened = delivery.open(tmp_path / "m.gguf", config=decilm(name) if name == "plain" else None)
    delivery.run(delivery.plan(opened, "hf", dtype="bfloat16"), tmp_path / "back")
    assert hf_hashes(tmp_path / "back") == hf_hashes(decilm(name))
    assert (
        hf_models.read_config(tmp_path / "back")["block_configs"]
        == hf_models.read_config(decilm(name))["block_configs"]
    )


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ([block(2, None, linear="ffn"), block(2, 256)], "no matrix in place of an MLP"),
        ([block(2, None), block(2, 256)], "leaves out the whole layer where the MLP is left out"),
        ([block(None, None)], "has an MLP in its last layer"),
    ],
)
def test_what_llama_cpp_would_compute_wrongly_is_refused(last: list[Any], said: str, tmp_path: Path) -> None:
    folder = make_decilm(tmp_path / "hf", [block(4, 256), *last])
    with pytest.raises(PlanError, match=said):
        delivery.plan(delivery.open(folder), "gguf")


def test_blocks_of_another_kind_are_refused(tmp_path: Path) -> None:
    folder = make_decilm(tmp_path / "hf", [block(4, 256)])
    config = hf_models.read_config(folder)
    config["block_configs"][0]["attention"]["window_length"] = 8
    hf_models.write_config(folder, config)
    with pytest.raises(ConfigError, match="attention with windows or sinks"):
        delivery.open(folder)


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_blocks_as_layers(count: int, tmp_path: Path) -> None:
    folder = make_decilm(tmp_path / "hf", [block(4, 256), block(2, 256)])
    config = hf_models.read_config(folder)
    config["block_configs"] = [block(4, 256)] * count
    hf_models.write_config(folder, config)
    with pytest.raises(ConfigError, match="not one number for each layer"):
        delivery.open(folder)
