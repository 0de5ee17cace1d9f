"""nemotron_nas: layers whose attention or MLP is narrower, one matrix, or left out, by rules written here anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from crossdock import delivery
from crossdock.errors import PlanError

Weights = dict[str, NDArray[Any]]
HIDDEN, HEADS, WIDTH, VOCAB = 48, 8, 8, 50
# per layer: KV heads or a word, width of the MLP or a word
BLOCKS: tuple[tuple[int | str, int | str], ...] = (
    (2, 256), ("no_op", 512), ("linear", "no_op"), (8, "linear"), ("no_op", "no_op"), (4, 256),
)  # fmt: skip


def attention_block(kind: int | str) -> dict[str, Any]:
    group = HEADS // kind if isinstance(kind, int) else None
    return {"n_heads_in_group": group, "no_op": kind == "no_op", "replace_with_linear": kind == "linear"}


def ffn_block(kind: int | str) -> dict[str, Any]:
    mult = 3 * kind / (2 * HIDDEN) if isinstance(kind, int) else None
    return {"ffn_mult": mult, "no_op": kind == "no_op", "replace_with_linear": kind == "linear"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Hugging Face folder as DeciLM's own code names it."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN),
    }  # fmt: skip
    for number, (attention, ffn) in enumerate(BLOCKS):
        layer = f"model.layers.{number}."
        if attention != "no_op":
            shapes[layer + "input_layernorm.weight"] = (HIDDEN,)
        if ffn != "no_op":
            shapes[layer + "post_attention_layernorm.weight"] = (HIDDEN,)
        if isinstance(attention, int):
            shapes |= {f"{layer}self_attn.{x}_proj.weight": (attention * WIDTH, HIDDEN) for x in "kv"}
            shapes[layer + "self_attn.q_proj.weight"] = (HEADS * WIDTH, HIDDEN)
            shapes[layer + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * WIDTH)
        elif attention == "linear":
            shapes[layer + "self_attn.linear_attn.weight"] = (HIDDEN, HIDDEN)
        if isinstance(ffn, int):
            shapes |= {f"{layer}mlp.{x}_proj.weight": (ffn, HIDDEN) for x in ("gate", "up")}
            shapes[layer + "mlp.down_proj.weight"] = (HIDDEN, ffn)
        elif ffn == "linear":
            shapes[layer + "mlp.linear_mlp.weight"] = (HIDDEN, HIDDEN)
    config = {
        "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "hidden_size": HIDDEN,
        "num_attention_heads": HEADS, "head_dim": WIDTH, "num_hidden_layers": len(BLOCKS), "vocab_size": VOCAB,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0,
        "tie_word_embeddings": False, "intermediate_size": None, "num_key_value_heads": None,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32, "rope_type": "llama3"},
        "block_configs": [{"attention": attention_block(a), "ffn": ffn_block(f)} for a, f in BLOCKS],
    }  # fmt: skip
    folder = tmp_path / "deci"
    folder.mkdir()
    random = np.random.default_rng(5)
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def wanted(whole: Weights, layer: int, local: int, rank: int, tp: int) -> Weights:
    attention, ffn = BLOCKS[layer]
    theirs, ours = f"model.layers.{layer}.", f"transformer.layers.{local}."
    want: Weights = {}
    if attention != "no_op":
        want[ours + "input_layernorm.weight"] = whole[theirs + "input_layernorm.weight"]
    if isinstance(attention, int):
        first, held = rank * attention // tp, max(attention // tp, 1)
        rows = slice(first * WIDTH, (first + held) * WIDTH)
        q = np.split(whole[theirs + "self_attn.q_proj.weight"], tp)[rank]
        k, v = (whole[f"{theirs}self_attn.{x}_proj.weight"][rows] for x in "kv")
        want[ours + "attention.qkv.weight"] = np.concatenate([q, k, v])
        want[ours + "attention.dense.weight"] = np.split(whole[theirs + "self_attn.o_proj.weight"], tp, 1)[rank]
    elif attention == "linear":
        want[ours + "attention.weight"] = np.split(whole[theirs + "self_attn.linear_attn.weight"], tp)[rank]
    if ffn != "no_op":
        want[ours + "post_layernorm.weight"] = whole[theirs + "post_attention_layernorm.weight"]
    if isinstance(ffn, int):
        want[ours + "ffn.fc.weight"] = np.split(whole[theirs + "mlp.gate_proj.weight"], tp)[rank]
        want[ours + "ffn.gate.weight"] = np.split(whole[theirs + "mlp.up_proj.weight"], tp)[rank]
        want[ours + "ffn.proj.weight"] = np.split(whole[theirs + "mlp.down_proj.weight"], tp, 1)[rank]
    elif ffn == "linear":
        want[ours + "ffn.weight"] = np.split(whole[theirs + "mlp.linear_mlp.weight"], tp)[rank]
    return want


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (4, 1), (8, 4)])
def test_names_and_local_layer_numbers(model: Path, tmp_path: Path, tp: int, pp: int) -> None:
    whole = load_file(model / "model.safetensors")
    checkpoint = delivery.open(model)
    delivery.run(delivery.plan(checkpoint, "trtllm", tp=tp, pp=pp), tmp_path / "out", workers=1)
    for stage, layers in enumerate(np.array_split(np.arange(len(BLOCKS)), pp)):
        for rank in range(tp):
            want: Weights = {}
            for local, layer in enumerate(layers):
                want |= wanted(whole, layer, local, rank, tp)
            if stage == 0:
                want["transformer.vocab_embedding.weight"] = whole["model.embed_tokens.weight"]
            if stage == pp - 1:
                rows = -(-VOCAB // tp)
                padded = np.concatenate([whole["lm_head.weight"], np.zeros((rows * tp - VOCAB, HIDDEN), np.float32)])
                want |= {"transformer.ln_f.weight": whole["model.norm.weight"]}
                want |= {"lm_head.weight": padded[rank * rows : (rank + 1) * rows]}
            got = load_file(tmp_path / "out" / f"rank{stage * tp + rank}.safetensors")
            assert got.keys() == want.keys()
            assert all(np.array_equal(got[name], array) for name, array in want.items())
    said = json.loads((tmp_path / "out/config.json").read_text())["layer_configs"]
    assert [layer["attention"]["impl"] for layer in said] == [
        a if isinstance(a, str) else "attention" for a, _ in BLOCKS
    ]
    assert [layer["ffn"]["impl"] for layer in said] == [f if isinstance(f, str) else "mlp" for _, f in BLOCKS]
    heads = [layer["attention"]["num_key_value_heads"] for layer in said]
    widths = [layer["ffn"]["intermediate_size"] for layer in said]
    assert heads == [a if isinstance(a, int) else None for a, _ in BLOCKS]
    assert widths == [f if isinstance(f, int) else None for _, f in BLOCKS]
    back = delivery.diff(checkpoint, delivery.open(tmp_path / "out"), workers=1)
    assert back.same


def test_every_layer_must_divide(model: Path) -> None:
    with pytest.raises(PlanError, match=r"256 cannot be split over 3 ranks(.|\n)*512 cannot"):
        delivery.plan(delivery.open(model), "trtllm", tp=3)
