"""Faults planted in the layouts themselves: crossdock reads or writes wrongly, and the same wrong way when it verifies.

Comparing files cannot see these: the copy is faithful to a map that is wrong. Logits do: of the reference forward on
the source against Megatron's own where the map of the source is wrong, of llama.cpp or transformers on the output where
the map of the target is. The table of faults and of what caught each is printed when all have run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock.delivery as delivery
from crossdock.errors import CrossdockError
from crossdock.layout import rules
from crossdock.model import families
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits
from support.reference_logits import FLOAT32, STORED, reference_logits, relative

GPT2, LLAMA, QWEN2 = "gpt2-v019-dist-tp2-fp32", "llama-v019-dist-tp2pp2-bf16", "qwen2-v019-legacy-tp2-fp32"
QWEN3, MIXTRAL = "qwen3-v019-dist-tp2pp2-fp32", "mixtral-v019-dist-tp2ep2pp2-bf16"
DEEPSEEK, NEMOTRON = "deepseek-v019-dist-tp2pp2-fp32", "nemotron-v016-dist-tp2-onep-fp32"
MEGATRON, ARGS, RANKS, HF, GGUF = (
    f"layouts/{name}.toml" for name in ("megatron", "megatron_args", "megatron_rank", "hf", "gguf")
)
TITLE = "faults in the maps themselves, each caught by logits or refused"
# how far right logits are from Megatron's at most, as a share of the largest; STORED says where Megatron's are further
NOISE = {"forward": FLOAT32, "transformers": FLOAT32, "llama.cpp": 1e-5}


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a data file, wherever it stands there; `model` shows it.

    caught  by which logits, or by the check (its name or words) that stops it before anything is written
    """

    name: str
    model: str
    file: str
    old: str
    new: str
    caught: str = "forward"


def family(name: str) -> str:
    return f"families/{name}.toml"


FAULTS = (
    Fault("k and v swapped", LLAMA, MEGATRON, "[attn_q:head attn_k: attn_v:]", "[attn_q:head attn_v: attn_k:]"),
    Fault("k and v before q", LLAMA, MEGATRON, "[attn_q:head attn_k: attn_v:]", "[attn_k: attn_v: attn_q:head]"),
    Fault("q, k, v concatenated instead of interleaved", LLAMA, MEGATRON,
          "(group [attn_q:head attn_k: attn_v:] half pair)",
          "([attn_q:group*head attn_k:group attn_v:group] half pair)"),
    Fault("gate and up swapped", LLAMA, MEGATRON, "[ffn_gate:ffn ffn_up:ffn]", "[ffn_up:ffn ffn_gate:ffn]"),
    Fault("gate and up interleaved instead of concatenated", LLAMA, MEGATRON,
          "([ffn_gate:ffn ffn_up:ffn])", "(ffn [ffn_gate: ffn_up:])"),
    Fault("gate and up of all ranks concatenated", QWEN2, RANKS,
          "([ffn_gate:ffn/tp ffn_up:ffn/tp])", "(ffn/tp [ffn_gate: ffn_up:])"),
    Fault("gate and up of experts swapped", MIXTRAL, MEGATRON,
          "[exp_gate:moe_ffn exp_up:moe_ffn]", "[exp_up:moe_ffn exp_gate:moe_ffn]"),
    Fault("gate and up of shared experts swapped", DEEPSEEK, MEGATRON,
          "[shexp_gate:shared_ffn shexp_up:shared_ffn]", "[shexp_up:shared_ffn shexp_gate:shared_ffn]"),
    Fault("latent k and v swapped", DEEPSEEK, MEGATRON,
          "[attn_k_b:nope attn_v_b:v_dim]", "[attn_v_b:v_dim attn_k_b:nope]"),
    Fault("rope order of the source", QWEN3, MEGATRON, "attn_v:] half pair)", "attn_v:] pair half)"),
    Fault("square matrix transposed", LLAMA, MEGATRON,
          "linear_proj.weight : embed (group head half pair)", "linear_proj.weight : (group head half pair) embed"),
    Fault("+1 of zero-centred norms missing", NEMOTRON, ARGS,
          '"-1 if apply_layernorm_1p', '"0 if apply_layernorm_1p'),
    Fault("epsilon wrong", LLAMA, ARGS, '"norm_epsilon"', '"norm_epsilon * 100"'),
    Fault("rope base wrong", QWEN3, ARGS, 'rope_theta = "rotary_base"', 'rope_theta = "rotary_base / 100"'),
    Fault("rope base forgotten", QWEN3, ARGS, 'rope_theta = "rotary_base"', 'rope_theta = "10000.0"',
          "unknown key"),
    Fault("partial rope made whole", NEMOTRON, ARGS, '"rotary_percent"', '"rotary_percent * 2"'),
    Fault("activation wrong", NEMOTRON, ARGS, "'relu2' if squared_relu", "'relu' if squared_relu", "does not fit"),
    Fault("tanh for exact gelu", GPT2, ARGS, "'gelu_tanh' if bias_gelu_fusion and add_bias_linear else 'gelu'",
          "'gelu_tanh'"),
    Fault("scaling of experts dropped", DEEPSEEK, ARGS, "(moe_router_topk_scaling_factor or 1.0)",
          "(moe_router_topk_scaling_factor or 1.0) / 2.5"),
    Fault("scaling of experts forgotten", DEEPSEEK, ARGS, "(moe_router_topk_scaling_factor or 1.0)", "1.0",
          "unknown key"),
    Fault("weights of experts not normalised", MIXTRAL, ARGS, "else not moe_router_pre_softmax", "else False",
          "does not fit"),
    Fault("experts per token", MIXTRAL, ARGS, '"moe_router_topk if num_experts else 0"',
          '"1 if num_experts else 0"'),
    Fault("tensor-parallel ranks cut between heads", QWEN2, RANKS,
          "(group/tp [attn_q:head attn_k: attn_v:] half pair)", "(group [attn_q:head attn_k: attn_v:] half pair/tp)"),
    Fault("bias dropped", QWEN2, ARGS, "add_bias_linear or add_qkv_bias", "add_bias_linear", "does not fit"),
    Fault("name of a bias misspelt", QWEN2, RANKS, "linear_qkv.bias", "linear_qkv.biases", "tensor-dropped"),
    Fault("norms of q and k dropped", QWEN3, ARGS, "qk_layernorm and not multi_latent_attention", "False",
          "does not fit"),
    Fault("untied head said to be tied", LLAMA, ARGS, "not untie_embeddings_and_output_weights",
          "untie_embeddings_and_output_weights", "tied-head"),
    Fault("rope order forgotten for llama.cpp", LLAMA, family("llama"), "(group head pair half)",
          "(group head half pair)", "llama.cpp"),
    Fault("rope order turned for llama.cpp", QWEN3, GGUF, "attn_q.weight : (group head half pair)",
          "attn_q.weight : (group head pair half)", "llama.cpp"),
    Fault("q heads permuted between groups", QWEN3, HF, "q_proj.weight : (group head half pair)",
          "q_proj.weight : (head group half pair)", "transformers"),
    Fault("columns of attention's output permuted", QWEN3, HF, "embed (group head half pair)",
          "embed (head group half pair)", "transformers"),
    Fault("norms of attention and MLP swapped", QWEN3, HF, "input_layernorm|post_attention_layernorm",
          "post_attention_layernorm|input_layernorm", "transformers"),
    Fault("latent key not transposed", DEEPSEEK, family("deepseek_v3"), "qhead kv_lora nope", "qhead nope kv_lora",
          "llama.cpp"),
    Fault("router's scores by softmax", DEEPSEEK, family("deepseek_v3"), '"expert_gating_func" = "UINT32 : 2"',
          '"expert_gating_func" = "UINT32 : 1"', "llama.cpp"),
    Fault("scaling of experts not written", DEEPSEEK, family("deepseek_v3"), '"FLOAT32 : routed_scaling_factor"',
          '"FLOAT32 : 1.0"', "llama.cpp"),
    Fault("rope base not written", QWEN3, GGUF, '"FLOAT32 : rope_theta @', '"FLOAT32 : 10000.0 @', "llama.cpp"),
    Fault("epsilon not written", QWEN3, GGUF, "FLOAT32 : norm_eps @ norm == 'rms'", "FLOAT32 : 1e-3 @ norm == 'rms'",
          "llama.cpp"),
    Fault("-1 of stored norms missing", NEMOTRON, family("nemotron"), 'offset = "-1"', 'offset = "0"', "transformers"),
    Fault("rope base not written (HF)", QWEN3, HF, 'rope_theta = "rope_theta"', 'rope_theta = "10000.0"',
          "transformers"),
)  # fmt: skip


def planted(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Every data file is read anew, `fault.file` with the fault in it."""
    put = dict(zip(fault.old.split("|"), fault.new.split("|"), strict=True))
    found = 0

    class Faulty:
        def __init__(self, file: Any) -> None:
            self.file = file

        def read_text(self, encoding: str) -> str:
            nonlocal found
            text, times = re.subn("|".join(map(re.escape, put)), lambda m: put[m[0]], self.file.read_text(encoding))
            found += times
            return text

    read = families.read_toml
    for module in (families, rules):
        patch.setattr(
            module,
            "read_toml",
            lambda file, where: read(Faulty(file) if where == fault.file else file, where),
        )
    fresh()
    rules.layout(fault.file[8:-5]) if fault.file.startswith("layouts/") else families.families()
    assert found, f"{fault.file} does not say {fault.old}"


def fresh() -> None:
    rules.layout.cache_clear()
    families.files.cache_clear()


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    fresh()


def distances(root: Path, out: Path, engine: str) -> tuple[float, bool]:
    """How far the logits of `engine` are from Megatron's, as a share of the largest; whether they verify."""
    tokens, expected = np.load(root / "tokens.npy"), np.load(root / "logits.npy")
    delivery.export(root, out, "gguf" if engine == "llama.cpp" else "hf", dtype="float32")
    if engine == "forward":
        got = reference_logits(root, tokens)
    else:
        got = (llama_logits if engine == "llama.cpp" else transformers_logits)(out, tokens)
    return relative(got, expected), delivery.verify(out, root).ok


def noise(engine: str, model: str) -> float:
    return max(NOISE[engine], STORED.get(model, 0.0))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_wrong_map_is_caught(
    fault: Fault,
    tmp_path: Path,
    megatron_checkpoint: Callable[[str], Path],
    patch: pytest.MonkeyPatch,
    table: list[tuple[str, ...]],
) -> None:
    planted(fault, patch)
    root, out = megatron_checkpoint(fault.model), tmp_path / "out"
    where = f"{fault.file.split('/')[1]}, {fault.model.split('-')[0]}"
    if fault.caught not in NOISE:
        with pytest.raises(CrossdockError) as refused:
            distances(root, out, "forward")
        assert any(fault.caught in (problem.check or problem.what) for problem in refused.value.problems)
        table.append((fault.name, where, f"refused: {fault.caught}"))
        return
    far, verified = distances(root, out, fault.caught)
    assert far > 50 * noise(fault.caught, fault.model)
    assert verified, "comparing files does see it"
    table.append((fault.name, where, f"logits of {fault.caught}: {far:.1e} off"))


@pytest.mark.parametrize("model", sorted({fault.model for fault in FAULTS}))
@pytest.mark.parametrize("engine", NOISE)
def test_without_a_fault_logits_are_right(
    model: str, engine: str, tmp_path: Path, megatron_checkpoint: Callable[[str], Path]
) -> None:
    far, verified = distances(megatron_checkpoint(model), tmp_path / "out", engine)
    assert verified
    assert far <= (2e-3 if engine == "llama.cpp" and model in (GPT2, NEMOTRON) else noise(engine, model))
