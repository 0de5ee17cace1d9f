"""Models, adapters and merged models from the real files: in today's llama.cpp, against a forward pass in numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import crossdock
from crossdock.errors import PlanError, TokenizerError, UsageError
from crossdock.formats.gguf.container import read_header
from oracles.llama_engine import llama_logits
from support.ggml_training_files import Floats, forward, log_softmax, read

TOKENS = [1, 250, 17, 99, 40, 41, 3, 200, 5, 6, 280, 12]
OLD = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}
INSIDE = {"attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
          "attn_output": "attention.wo", "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1",
          "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3"}  # fmt: skip
HF = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
      "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
      "feed_forward.w3": "mlp.up_proj"}  # fmt: skip


def gguf_weights(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a GGUF file by the old names."""
    raw, out = path.read_bytes(), {}
    for tensor in read_header(path).tensors:
        stem = tensor.name.removesuffix(".weight")
        layer, _, inner = stem.removeprefix("blk.").partition(".")
        name = f"layers.{layer}.{INSIDE[inner]}" if inner else OLD[stem]
        values = np.frombuffer(raw, "<f4", int(np.prod(tensor.shape)), tensor.offset).reshape(tensor.shape)
        out[f"{name}.weight"] = values
    return out


def with_delta(weights: dict[str, Floats], lora: dict[str, Floats], *, norms: bool) -> dict[str, Floats]:
    """Weights plus B A^T, in float64 and back."""
    out = {}
    for name, values in weights.items():
        a, b = (lora[f"{name}.lora{half}"].astype(np.float64) for half in "AB")
        delta = (b @ a.T).reshape(values.shape)
        out[name] = values if "norm" in name and not norms else (values + delta).astype(np.float32)
    return out


def distance(logits: NDArray[np.float32], wanted: Floats) -> float:
    return float(np.abs(log_softmax(logits) - wanted).max())


@pytest.mark.parametrize("name", ["a1-adam-ff96", "a3-adam-ff44", "v1-lbfgs", "bad-aborted-lbfgs"])
def test_a_model_in_llama_cpp(name: str, legacy: Path, tmp_path: Path) -> None:
    source, vocabulary = legacy / f"ggcp/{name}.ggcp", legacy / "support/vocab-tiny.gguf"
    checkpoint, output = crossdock.open(source), tmp_path / "model.gguf"
    plan = crossdock.plan(checkpoint, "gguf", tokenizer=vocabulary)
    assert any("norms' epsilon" in text and "2023-08-21" in text for text in plan.warnings)
    crossdock.run(plan, output)
    assert crossdock.verify(output, checkpoint, tokenizer=vocabulary).ok
    held = read(source.read_bytes(), "ggcp")
    wanted = forward(held.tensors, held.sizes["n_layer"], held.sizes["n_head"], TOKENS)
    assert distance(llama_logits(output, np.array([TOKENS]))[0], wanted) < 1e-5
    tokens = read_header(vocabulary).metadata["tokenizer.ggml.tokens"]
    assert read_header(output).metadata["tokenizer.ggml.tokens"] == tokens


def test_what_the_file_does_not_hold_can_be_given(legacy: Path, tmp_path: Path) -> None:
    source = legacy / "ggcp/a3-adam-ff44.ggcp"
    checkpoint = crossdock.open(source, set={"norm_eps": "5e-06", "rope_theta": "20000.0"})
    plan = crossdock.plan(checkpoint, "gguf", tokenizer=legacy / "support/vocab-tiny.gguf")
    assert not [text for text in plan.warnings if "does not hold" in text]
    crossdock.run(plan, tmp_path / "model.gguf")
    found = read_header(tmp_path / "model.gguf").metadata
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(5e-6)
    assert found["llama.rope.freq_base"] == 20000.0


def test_the_model_for_transformers(legacy: Path, tmp_path: Path) -> None:
    """Half-split heads: rows of q and k trade places, all else is as stored."""
    import torch
    from transformers import AutoModelForCausalLM

    source = legacy / "ggcp/a3-adam-ff44.ggcp"
    crossdock.export(source, tmp_path / "hf", "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].numpy()
    held = read(source.read_bytes(), "ggcp")
    assert distance(logits, forward(held.tensors, 3, 2, TOKENS)) < 1e-5


def test_a_vocabulary_of_another_size(legacy: Path) -> None:
    checkpoint = crossdock.open(legacy / "generated/g11-v1-adam-past3.ggcp")
    for target in ("gguf", "gguf-checkpoint"):
        with pytest.raises(TokenizerError, match="does not fit the model"):
            crossdock.plan(checkpoint, target, tokenizer=legacy / "support/vocab-tiny.gguf")


def test_a_rope_of_half_heads_is_refused(legacy: Path, tmp_path: Path) -> None:
    """n_rot is at byte 40; today's loader says `invalid n_rot`."""
    raw = bytearray((legacy / "ggcp/a3-adam-ff44.ggcp").read_bytes())
    raw[40:44] = (4).to_bytes(4, "little")
    (tmp_path / "half.ggcp").write_bytes(raw)
    checkpoint = crossdock.open(tmp_path / "half.ggcp")
    for target in ("gguf", "hf"):
        with pytest.raises(PlanError, match="n_rot must be n_embd / n_head"):
            crossdock.plan(checkpoint, target)
    crossdock.run(crossdock.plan(checkpoint, "gguf-checkpoint"), tmp_path / "out.gguf")
    assert read_header(tmp_path / "out.gguf").metadata["llama.rope.dimension_count"] == 4


def test_the_adapter_of_today(legacy: Path, tmp_path: Path) -> None:
    """Byte for byte what was made by hand for today's llama.cpp, and there as good as base + delta without norms."""
    import hashlib

    source, output = legacy / "ggcl/l1-adam.ggcl", tmp_path / "adapter.gguf"
    checkpoint = crossdock.open(source)
    plan = crossdock.plan(checkpoint, "gguf-lora")
    lost = next(text for text in plan.warnings if text.startswith("NOT carried over"))
    assert all(f"{name}.weight.lora_a" in lost for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"))
    assert "blk.0.ffn_norm.weight.lora_b" in plan.ignored
    crossdock.run(plan, output)
    assert crossdock.verify(output, checkpoint).ok
    wanted = json.loads((legacy / "expected/l1-adapter-today.json").read_text())
    header, raw = read_header(output), output.read_bytes()
    assert [
        (t.name, list(reversed(t.shape)), hashlib.sha256(raw[t.offset : t.offset + t.nbytes]).hexdigest())
        for t in header.tensors
    ] == [(t["name"], t["shape"], t["sha256"]) for t in wanted["tensors"]]
    assert header.metadata == {k: float(v) if t == "f32" else v for k, (t, v) in wanted["kv"].items()}
    base = legacy / "support/base96.gguf"
    lora = read(source.read_bytes(), "ggcl")
    weights = with_delta(gguf_weights(base), lora.tensors, norms=False)
    logits = llama_logits(base, np.array([TOKENS]), adapter=output)[0]
    assert distance(logits, forward(weights, 1, 2, TOKENS)) < 1e-5
    assert distance(logits, forward(gguf_weights(base), 1, 2, TOKENS)) > 1e-3


@pytest.mark.parametrize("name", ["l1-adam", "l3-lbfgs", "n1-adam-needs-ff96"])
def test_merged_models(name: str, legacy: Path, tmp_path: Path) -> None:
    """GGUF base to GGUF and to Hugging Face, Hugging Face base to GGUF: all are base + delta, norms included."""
    source, base = legacy / f"ggcl/{name}.ggcl", legacy / "support/base96.gguf"
    output = tmp_path / "merged.gguf"
    checkpoint = crossdock.open(source, base=base)
    crossdock.run(crossdock.plan(checkpoint, "gguf", tokenizer=base), output, memory=1 << 20, workers=2)
    assert crossdock.verify(output, checkpoint, tokenizer=base).ok
    wanted = with_delta(gguf_weights(base), read(source.read_bytes(), "ggcl").tensors, norms=True)
    got = gguf_weights(output)
    assert got.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-7, atol=0, err_msg=key)
    assert distance(llama_logits(output, np.array([TOKENS]))[0], forward(wanted, 1, 2, TOKENS)) < 1e-5
    crossdock.export(base, tmp_path / "base-hf", "hf")
    again = crossdock.open(source, base=tmp_path / "base-hf")
    crossdock.run(crossdock.plan(again, "gguf", tokenizer=base), tmp_path / "again.gguf")
    assert {k: v.tobytes() for k, v in gguf_weights(tmp_path / "again.gguf").items()} == {
        k: v.tobytes() for k, v in got.items()
    }
    crossdock.run(crossdock.plan(checkpoint, "hf"), tmp_path / "hf")
    assert crossdock.verify(tmp_path / "hf", checkpoint).ok
    assert all(tensor.status == "equal" for tensor in crossdock.diff(tmp_path / "hf", output).tensors)
    assert all(tensor.status == "equal" for tensor in crossdock.diff(checkpoint, output).tensors)


def test_a_merge_into_another_model_is_refused(legacy: Path) -> None:
    with pytest.raises(PlanError) as caught:
        crossdock.open(legacy / "ggcl/l1-adam.ggcl", base=legacy / "support/base88.gguf")
    fields = {problem.where.rpartition(": ")[2] for problem in caught.value.problems}
    heads = {"num_attention_heads", "num_key_value_heads", "head_dim"}
    assert fields == heads | {"num_hidden_layers", "intermediate_size"}
    with pytest.raises(PlanError, match="not an adapter"):
        crossdock.open(legacy / "ggcp/a1-adam-ff96.ggcp", base=legacy / "support/base96.gguf")
    with pytest.raises(PlanError, match="this is an adapter, not a model"):
        crossdock.plan(crossdock.open(legacy / "ggcl/l1-adam.ggcl"), "gguf")
    with pytest.raises(UsageError, match="gguf-lora has no quantisation q8_0"):
        crossdock.plan(crossdock.open(legacy / "ggcl/l1-adam.ggcl"), "gguf-lora", quantize="q8_0")


def test_an_adapter_of_zeros_merges_into_nothing(legacy: Path, tmp_path: Path) -> None:
    """`lora-noop`: what is called merged would be the base, byte for byte."""
    base, output = legacy / "support/base96.gguf", tmp_path / "merged.gguf"
    raw = (legacy / "ggcl/l1-adam.ggcl").read_bytes()
    tensors = read(raw, "ggcl").tensors
    second = [values.tobytes() for name, values in tensors.items() if name.endswith("loraB")]
    zeros = raw
    for values in second:
        zeros = zeros.replace(values, bytes(len(values)))
    (tmp_path / "zeros.ggcl").write_bytes(zeros)
    plan = crossdock.plan(crossdock.open(tmp_path / "zeros.ggcl", base=base), "gguf")
    with pytest.raises(PlanError, match="adds only zeros") as caught:
        crossdock.run(plan, output)
    assert caught.value.problems[0].check == "lora-noop"
    assert not output.exists()
    assert not output.with_name("merged.gguf.partial").exists()
    at = raw.index(second[-1])
    (tmp_path / "one.ggcl").write_bytes(zeros[:at] + raw[at:])
    crossdock.run(crossdock.plan(crossdock.open(tmp_path / "one.ggcl", base=base), "gguf"), output)


def test_peft_folder(legacy: Path, tmp_path: Path) -> None:
    """By PEFT's own formulas: a matrix grows by B A alpha / r, an embedding by (B A)^T alpha / r; half-split heads."""
    source, base = legacy / "ggcl/l1-adam.ggcl", legacy / "support/base96.gguf"
    crossdock.run(crossdock.plan(crossdock.open(source), "peft"), tmp_path / "peft")
    assert crossdock.verify(tmp_path / "peft", crossdock.open(source)).ok
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    pairs = load_file(tmp_path / "peft/adapter_model.safetensors")
    crossdock.export(base, tmp_path / "hf", "hf")
    crossdock.run(crossdock.plan(crossdock.open(source, base=base), "hf"), tmp_path / "merged")
    before, after = (load_file(tmp_path / f"{name}/model.safetensors") for name in ("hf", "merged"))
    met = set()
    for name, values in before.items():
        stem = name.removesuffix(".weight")
        if "norm" in stem:
            continue
        assert stem.rpartition(".")[2] in config["target_modules"]
        rank = config["rank_pattern"].get(stem, config["r"])
        alpha = config["alpha_pattern"].get(stem, config["lora_alpha"])
        embedding = stem.endswith("embed_tokens")
        keys = [f"base_model.model.{stem}.lora_{end}" for end in
                (("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight"))]  # fmt: skip
        a, b = (pairs[key].astype(np.float64) for key in keys)
        assert a.shape[0] == b.shape[1] == rank
        delta = (b @ a) * alpha / rank
        np.testing.assert_allclose(values + (delta.T if embedding else delta), after[name], rtol=1e-6, atol=1e-7)
        met |= set(keys)
    assert met == pairs.keys()


def test_peft_with_many_ranks(legacy: Path, tmp_path: Path) -> None:
    source = legacy / "generated/g6-ranks-past1.ggcl"
    crossdock.run(crossdock.plan(crossdock.open(source), "peft"), tmp_path / "peft")
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    pairs = load_file(tmp_path / "peft/adapter_model.safetensors")
    held = read(source.read_bytes(), "ggcl")
    assert config["rank_pattern"] == config["alpha_pattern"]
    for layer in range(held.sizes["n_layer"]):
        for old, new in HF.items():
            stem = f"model.layers.{layer}.{new}"
            rank = held.ranks[old.rpartition(".")[2]]
            assert config["rank_pattern"].get(stem, config["r"]) == rank
            a = pairs[f"base_model.model.{stem}.lora_A.weight"]
            np.testing.assert_array_equal(a, held.tensors[f"layers.{layer}.{old}.weight.loraA"].T)
