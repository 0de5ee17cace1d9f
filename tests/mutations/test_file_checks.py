"""Faults that conversions have made in the wild, planted one at a time: `verify` must name each, and nothing else.

Every fault leaves a file that loads, of the right size where it can. The table of faults and of the check that caught
each is printed when all have run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from seen_in_logits import seen_in_logits

from crossdock.cli import main
from oracles.rewriting import Array, Folder, Gguf, rewrite_gguf, rewrite_hf

TITLE = "faults, each caught by `crossdock verify`, and what logits say of them"
ROOT = Path(__file__).parents[2]
LAYERS = range(3)  # of every recipe in tests/support/hf_models.py
HEADS, GROUPS, WIDTH, EXPERTS = 8, 2, 8, 5  # of its llama and mixtral


@dataclass(frozen=True)
class Fault:
    """A fault in the file made from `model`: what verify must name. `kind`: "gguf" or "hf", with export options."""

    name: str
    model: str
    change: Callable[[Any], None]
    named: tuple[str, ...]
    kind: str = "gguf"
    options: tuple[str, ...] = ()


def swapped(one: str, other: str) -> Callable[[Gguf], None]:
    return lambda model: model.swap(one, other)


def changed(name: str, how: Callable[[Array], Array]) -> Callable[[Gguf], None]:
    return lambda model: model.put(name, how(model.array(name)))


def each(names: tuple[str, ...], how: Callable[[Array], Array]) -> Callable[[Gguf], None]:
    def change(model: Gguf) -> None:
        for name in names:
            model.put(name, how(model.array(name)))

    return change


def key(name: str, value: Any) -> Callable[[Gguf], None]:
    return lambda model: model.set(name, value)


def dropped(*names: str) -> Callable[[Gguf], None]:
    def change(model: Gguf) -> None:
        for name in names:
            (model.tensors if name in model.tensors else model.keys).pop(name)

    return change


def added(name: str, kind: str, value: Any) -> Callable[[Gguf], None]:
    """A key that the model has no reason to have."""

    def change(model: Gguf) -> None:
        assert name not in model.keys
        model.keys[name] = [gguf.GGUFValueType[kind], None, value]

    return change


def config(name: str, value: Any = None) -> Callable[[Folder], None]:
    """A value of config.json replaced or added; None: the key is gone."""

    def change(folder: Folder) -> None:
        before = folder.config.pop(name, None)
        assert before != value
        if value is not None:
            folder.config[name] = value

    return change


def neighbours_to_halves(rows: Array) -> Array:
    """ggml's rope order back to that of Hugging Face, head by head."""
    heads = rows.reshape(-1, WIDTH // 2, 2, rows.shape[-1])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def interleaved(rows: Array) -> Array:
    """gpt2's fused rows from [q, k, v] to [q, k, v] of each of its 4 heads."""
    return rows.reshape(3, 4, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def scale_flipped(blocks: Array) -> Array:
    """The sign of one block's scale turned: bytes 0 and 1 of a q8_0 block are its float16 scale."""
    out = blocks.copy()
    out.reshape(-1, 34)[17, 1] ^= 0x80
    return out


def one_copied(experts: Array) -> Array:
    out = experts.copy()
    out[1] = out[0]
    return out


def one_row_more(model: Gguf) -> None:
    """A vocabulary padded for training, its padding kept as if it were tokens."""
    for name in ("token_embd.weight", "output.weight"):
        rows = model.array(name)
        model.put(name, np.concatenate([rows, rows[:5] * 0]))
    model.set("llama.vocab_size", model.array("token_embd.weight").shape[0])


def layer_onto_another(model: Gguf) -> None:
    for name in layer_names(model, 0):
        model.put(name.replace("blk.0.", "blk.2."), model.array(name).copy())


def layers_exchanged(model: Gguf) -> None:
    for name in layer_names(model, 0):
        model.swap(name, name.replace("blk.0.", "blk.1."))


def layer_names(model: Gguf, layer: int) -> list[str]:
    return [name for name in model.tensors if name.startswith(f"blk.{layer}.")]


def head_from_embedding(model: Gguf) -> None:
    model.put("output.weight", model.array("token_embd.weight").copy())


def relabelled(folder: Folder) -> None:
    import torch

    name = "model.layers.1.mlp.up_proj.weight"
    folder.tensors[name] = folder.tensors[name].view(torch.float16)


def stale_shard(folder: Folder) -> None:
    """A tensor of an earlier iteration: nearly the same values."""
    name = "model.layers.2.self_attn.o_proj.weight"
    folder.tensors[name] = (folder.tensors[name].float() * 1.01).bfloat16()


def leftover(folder: Folder) -> None:
    folder.tensors["model.layers.3.mlp.up_proj.weight"] = folder.tensors["model.layers.2.mlp.up_proj.weight"].clone()


def other_end(folder: Folder) -> None:
    path = folder.path / "generation_config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"eos_token_id": 7}))


def half_a_norm(model: Gguf) -> None:
    name = "blk.1.attn_norm.weight"
    model.tensors[name] = [model.array(name).astype(np.float16), gguf.GGMLQuantizationType.F16]


def tokens_exchanged(model: Gguf) -> None:
    tokens = list(model.keys["tokenizer.ggml.tokens"][2])
    tokens[300], tokens[301] = tokens[301], tokens[300]
    model.set("tokenizer.ggml.tokens", tokens)


def merge_lost(model: Gguf) -> None:
    model.set("tokenizer.ggml.merges", model.keys["tokenizer.ggml.merges"][2][1:])


BLOCK = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
STACKS = tuple(f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
Q, K, V = (f"blk.1.attn_{x}.weight" for x in "qkv")

FAULTS = (
    Fault("k and v swapped", "llama", swapped(K, V), (K, V)),
    Fault("q and output swapped", "llama", swapped(Q, "blk.1.attn_output.weight"), (Q, "blk.1.attn_output.weight")),
    Fault("rope order of q not permuted", "llama", changed(Q, neighbours_to_halves), (Q,)),
    Fault("rope order of k not permuted", "llama", changed(K, neighbours_to_halves), (K,)),
    Fault(
        "gate and up swapped", "llama", swapped("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
        ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
    ),
    Fault("qkv interleaved, not concatenated", "gpt2", changed("blk.1.attn_qkv.weight", interleaved),
          ("blk.1.attn_qkv.weight",)),
    Fault("qkv bias interleaved", "gpt2", changed("blk.1.attn_qkv.bias", interleaved), ("blk.1.attn_qkv.bias",)),
    Fault("+1 missing in a norm", "nemotron", changed("blk.2.ffn_norm.weight", lambda w: w - 1),
          ("blk.2.ffn_norm.weight",)),
    Fault(
        "+1 twice in all norms", "nemotron",
        each(tuple(f"blk.{i}.{n}_norm.weight" for i in LAYERS for n in ("attn", "ffn")), lambda w: w + 1),
        tuple(f"blk.{i}.{n}_norm.weight" for i in LAYERS for n in ("attn", "ffn")),
    ),
    Fault("eps changed", "llama", key("llama.attention.layer_norm_rms_epsilon", 1e-5 + 1e-8),
          ("llama.attention.layer_norm_rms_epsilon",)),
    Fault("rope base changed", "llama", key("llama.rope.freq_base", 500000.0), ("llama.rope.freq_base",)),
    Fault("query heads off by one", "llama", changed(Q, lambda w: np.roll(w, WIDTH, axis=0)), (Q,)),
    Fault("kv heads exchanged", "llama", changed(V, lambda w: np.roll(w, WIDTH, axis=0)), (V,)),
    Fault("expert order rotated", "mixtral", each(STACKS, lambda w: np.roll(w, 1, axis=0)), STACKS),
    Fault("expert duplicated", "mixtral", each(STACKS, one_copied), STACKS),
    Fault("router rows rotated", "mixtral", changed("blk.0.ffn_gate_inp.weight", lambda w: np.roll(w, 1, axis=0)),
          ("blk.0.ffn_gate_inp.weight",)),
    Fault("router bias dropped", "deepseek_v3", dropped("blk.1.exp_probs_b.bias"), ("blk.1.exp_probs_b.bias",)),
    Fault("shared expert's gate and up swapped", "deepseek_v3",
          swapped("blk.2.ffn_gate_shexp.weight", "blk.2.ffn_up_shexp.weight"),
          ("blk.2.ffn_gate_shexp.weight", "blk.2.ffn_up_shexp.weight")),
    Fault("latent heads off by one", "deepseek_v3", changed("blk.1.attn_v_b.weight", lambda w: np.roll(w, 1, axis=0)),
          ("blk.1.attn_v_b.weight",)),
    Fault("expert scaling forgotten", "deepseek_v3", key("deepseek2.expert_weights_scale", 1.0),
          ("deepseek2.expert_weights_scale",)),
    Fault("experts per token changed", "mixtral", key("llama.expert_used_count", 1), ("llama.expert_used_count",)),
    Fault("untied head missing", "llama", dropped("output.weight"), ("output.weight",)),
    Fault("head replaced by the embedding", "llama", head_from_embedding, ("output.weight",)),
    Fault("vocabulary shifted by one row", "llama", changed("token_embd.weight", lambda w: np.roll(w, 1, axis=0)),
          ("token_embd.weight",)),
    Fault("padding rows kept as tokens", "llama", one_row_more,
          ("llama.vocab_size", "output.weight", "token_embd.weight")),
    Fault("square matrix transposed", "llama", changed("blk.0.attn_output.weight", lambda w: w.T),
          ("blk.0.attn_output.weight",)),
    Fault("Conv1D matrix not transposed", "gpt2", changed("blk.0.attn_output.weight", lambda w: w.T),
          ("blk.0.attn_output.weight",)),
    Fault("bias zeroed", "qwen2", changed("blk.1.attn_k.bias", lambda b: b * 0), ("blk.1.attn_k.bias",)),
    Fault("bias dropped", "qwen2", dropped("blk.1.attn_q.bias"), ("blk.1.attn_q.bias",)),
    Fault("a layer duplicated onto another", "llama", layer_onto_another, tuple(f"blk.2.{n}.weight" for n in BLOCK)),
    Fault("two layers exchanged", "llama", layers_exchanged,
          tuple(f"blk.{i}.{n}.weight" for i in (0, 1) for n in BLOCK)),
    Fault("attention's and mlp's norm swapped", "llama", swapped("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"),
          ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")),
    Fault("norm in half precision", "llama", half_a_norm, ("blk.1.attn_norm.weight",)),
    Fault("q norm and k norm swapped", "qwen3", swapped("blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"),
          ("blk.0.attn_k_norm.weight", "blk.0.attn_q_norm.weight")),
    Fault("a q8_0 block corrupted", "llama", changed("blk.0.ffn_down.weight", scale_flipped),
          ("blk.0.ffn_down.weight",), options=("-q", "q8_0")),
    Fault("kv head count of plain attention", "llama", key("llama.attention.head_count_kv", HEADS),
          ("llama.attention.head_count_kv",)),
    Fault("rope scaling dropped (GGUF)", "llama-linear",
          dropped("llama.rope.scaling.type", "llama.rope.scaling.factor"),
          ("llama.rope.scaling.factor", "llama.rope.scaling.type")),
    Fault("rope scaling that nobody trained with", "llama", added("llama.rope.scaling.factor", "FLOAT32", 4.0),
          ("llama.rope.scaling.factor",)),
    Fault("soft cap that nobody trained with", "llama", added("llama.attn_logit_softcapping", "FLOAT32", 50.0),
          ("llama.attn_logit_softcapping",)),
    Fault("rope divisors missing", "llama3", dropped("rope_freqs.weight"), ("rope_freqs.weight",)),
    Fault("rope divisors inverted", "llama3", changed("rope_freqs.weight", lambda w: 1 / w), ("rope_freqs.weight",)),
    Fault("partial rope made whole", "nemotron", key("nemotron.rope.dimension_count", WIDTH),
          ("nemotron.rope.dimension_count",)),
    Fault("architecture renamed", "qwen2", key("general.architecture", "llama"), ("general.architecture",)),
    Fault("two tokens exchanged", "tiny-kjv", tokens_exchanged, ("tokenizer.ggml.tokens",)),
    Fault("first merge lost", "tiny-kjv", merge_lost, ("tokenizer.ggml.merges",)),
    Fault("end token changed", "tiny-kjv", key("tokenizer.ggml.eos_token_id", 2), ("tokenizer.ggml.eos_token_id",)),
    Fault("pre-tokenizer of another model", "tiny-kjv", key("tokenizer.ggml.pre", "gpt-2"), ("tokenizer.ggml.pre",)),
    Fault("wrong dtype label", "llama", relabelled, ("model.layers.1.mlp.up_proj.weight",), "hf"),
    Fault("tensor of an earlier iteration", "llama", stale_shard, ("model.layers.2.self_attn.o_proj.weight",), "hf"),
    Fault("tensor of another model left over", "llama", leftover, ("model.layers.3.mlp.up_proj.weight",), "hf"),
    Fault("sliding window dropped", "mistral", config("sliding_window"), ("sliding_window",), "hf"),
    Fault("end token of generation changed", "tiny-kjv", other_end, ("generation_config.json: eos_token_id",), "hf"),
    Fault("sliding window added", "llama", config("sliding_window", 32), ("sliding_window",), "hf"),
    Fault("rope scaling dropped (HF)", "llama-linear", config("rope_scaling"), ("rope_scaling",), "hf"),
    Fault("activation changed", "llama", config("hidden_act", "gelu"), ("hidden_act",), "hf"),
    Fault("head said to be tied", "llama", config("tie_word_embeddings", True), ("tie_word_embeddings",), "hf"),
    Fault("top-k weights not normalised", "qwen3_moe", config("norm_topk_prob", False), ("norm_topk_prob",), "hf"),
    Fault("chosen groups changed", "deepseek_v3", config("topk_group", 1), ("topk_group",), "hf"),
)  # fmt: skip

# what changes nothing that the reference forward computes of given tokens: tokenizers, what the file says twice, and
# the divisors of Llama 3.1's rope, which it takes from the configuration
SAME_LOGITS = {
    "norm in half precision", "rope scaling that nobody trained with", "two tokens exchanged", "first merge lost",
    "end token changed", "pre-tokenizer of another model", "end token of generation changed",
    "rope scaling dropped (HF)", "rope divisors inverted",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What `verify` said. named: tensor or key -> the check that caught it."""

    code: int
    named: dict[str, str]


def verify(out: Path, source: Path, *options: object) -> Found:
    result = CliRunner().invoke(main, ["verify", str(out), "--against", str(source), *map(str, options), "--json"])
    assert result.exit_code in (0, 1), result.output
    report = json.loads(result.stdout)
    named = {problem["where"]: "key" for problem in report["problems"]}
    for tensor in report["tensors"]:
        if tensor["status"] == "different":
            named[tensor["name"]] = "values" if tensor["figures"] else "shape or type"
        elif tensor["status"] != "equal":
            named[tensor["name"]] = str(tensor["status"])
    return Found(result.exit_code, named)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, hf_model: Callable[[str], Path]
) -> Callable[[str, str, tuple[str, ...]], tuple[Path, Path, tuple[object, ...]]]:
    """(model, kind, export options) -> the good output, its source, and the options that verify needs."""
    base = tmp_path_factory.mktemp("good")

    def made(model: str, kind: str, options: tuple[str, ...]) -> tuple[Path, Path, tuple[object, ...]]:
        real = model == "tiny-kjv"
        source = ROOT / "examples" / model if real else hf_model(model)
        more: tuple[object, ...] = ("--tokenizer", ROOT / "examples" / "tiny-kjv-tokenizer") if real else ()
        plain = ("--dtype", "f32") if kind == "gguf" and not options else ()
        out = base / "-".join([model, kind, *options]) / ("model.gguf" if kind == "gguf" else "model")
        if not out.exists():
            out.parent.mkdir()
            asked = ["export", source, "--to", kind, "-o", out, *more, *plain, *options, "--no-progress"]
            assert CliRunner().invoke(main, [*map(str, asked)]).exit_code == 0
        return out, source, more

    return made


def rewritten(fault: Fault, good: Path, folder: Path) -> Path:
    if fault.kind == "hf":
        rewrite_hf(good, folder / "model", fault.change)
        return folder / "model"
    rewrite_gguf(good, folder / "model.gguf", fault.change)
    return folder / "model.gguf"


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_planted_fault_is_named(fault: Fault, exported: Any, table: list[tuple[str, ...]], tmp_path: Path) -> None:
    good, source, options = exported(fault.model, fault.kind, fault.options)
    out = rewritten(fault, good, tmp_path)
    found = verify(out, source, *options)
    assert found.code == 1
    assert set(found.named) == set(fault.named)
    shown = sorted(fault.named)
    names = ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
    logits = seen_in_logits(out, source, next(iter(options[1:]), None))
    assert (logits == "same logits") == (fault.name in SAME_LOGITS)
    table.append((fault.name, " and ".join(sorted({found.named[n] for n in fault.named})), logits, names))


@pytest.mark.parametrize(
    ("model", "kind", "options"), sorted({(f.model, f.kind, f.options) for f in FAULTS}), ids=lambda v: str(v)
)
def test_without_a_fault_the_rewritten_file_verifies(
    model: str, kind: str, options: tuple[str, ...], exported: Any, tmp_path: Path
) -> None:
    """So nothing is caught for being rewritten by another library."""
    good, source, more = exported(model, kind, options)
    out = rewritten(Fault("none", model, lambda _: None, (), kind, options), good, tmp_path)
    assert verify(out, source, *more) == Found(0, {})


def test_rank_files_exchanged_in_the_source(
    megatron_checkpoint: Callable[[str], Path], table: list[tuple[str, ...]], tmp_path: Path
) -> None:
    """What is cut over tensor-parallel ranks differs, what every rank holds whole does not."""
    source = tmp_path / "source"
    shutil.copytree(megatron_checkpoint("qwen2-v019-legacy-tp2-fp32"), source)
    out = tmp_path / "model.gguf"
    asked = ["export", source, "--to", "gguf", "-o", out, "--no-progress"]
    assert CliRunner().invoke(main, [*map(str, asked)]).exit_code == 0
    assert verify(out, source) == Found(0, {})
    first, second = sorted(source.glob("**/mp_rank_*/*.pt"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    found = verify(out, source)
    assert found.code == 1
    assert {name.split(".", 2)[-1] for name in found.named if name.startswith("blk.")} == {
        *(f"attn_{x}.{kind}" for x in "qkv" for kind in ("weight", "bias")),
        *(f"{name}.weight" for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")),
    }
    assert "token_embd.weight" in found.named
    table.append(("tensor-parallel rank files exchanged", "values", "", f"{len(found.named)} tensors"))
