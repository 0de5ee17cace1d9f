"""Where every row and column goes, by rules written here anew in numpy: no layout, no engine, only slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from crossdock import delivery
from crossdock.errors import CheckFailed, PlanError, UsageError
from oracles.trtllm_files import rank_files
from support import hf_models

Weights = dict[str, NDArray[Any]]
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": 64, "head_dim": 4,
         "intermediate_size": 96, "vocab_size": 251}  # fmt: skip


def exported(source: Path, output: Path, **settings: Any) -> list[Weights]:
    """The rank files of an export, in order, and a proof that `verify` agrees."""
    checkpoint = delivery.open(source)
    plan = delivery.plan(checkpoint, "trtllm", **settings)
    delivery.run(plan, output, workers=1)
    assert delivery.verify(output, checkpoint, workers=1).ok
    return [load_file(output / f"rank{rank}.safetensors") for rank in range(len(plan.ranks))]


def kv_rows(weight: NDArray[Any], rank: int, tp: int, heads: int, width: int) -> NDArray[Any]:
    """Rows of K or V on a rank: whole heads in order; with fewer heads than ranks, head floor(rank * heads / tp)."""
    per = max(heads // tp, 1)
    first = rank * heads // tp
    return weight[first * width : (first + per) * width]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return hf_models.make_hf("llama", tmp_path / "llama", **SMALL)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 3), (8, 1), (16, 2)])
def test_llama(llama: Path, tmp_path: Path, tp: int, pp: int) -> None:
    whole = load_file(llama / "model.safetensors")
    ranks = exported(llama, tmp_path / "out", tp=tp, pp=pp)
    assert len(ranks) == tp * pp
    stages = np.array_split(np.arange(3), pp)  # as torch.tensor_split: the first stages get the rest
    for number, got in enumerate(ranks):
        stage, rank = divmod(number, tp)
        want: Weights = {}
        for local, layer in enumerate(stages[stage]):
            theirs, ours = f"model.layers.{layer}.", f"transformer.layers.{local}."
            q = np.split(whole[theirs + "self_attn.q_proj.weight"], tp)[rank]
            k, v = (kv_rows(whole[f"{theirs}self_attn.{x}_proj.weight"], rank, tp, 4, 4) for x in "kv")
            want[ours + "attention.qkv.weight"] = np.concatenate([q, k, v])
            want[ours + "attention.dense.weight"] = np.split(whole[theirs + "self_attn.o_proj.weight"], tp, 1)[rank]
            want[ours + "mlp.fc.weight"] = np.split(whole[theirs + "mlp.gate_proj.weight"], tp)[rank]
            want[ours + "mlp.gate.weight"] = np.split(whole[theirs + "mlp.up_proj.weight"], tp)[rank]
            want[ours + "mlp.proj.weight"] = np.split(whole[theirs + "mlp.down_proj.weight"], tp, 1)[rank]
            want[ours + "input_layernorm.weight"] = whole[theirs + "input_layernorm.weight"]
            want[ours + "post_layernorm.weight"] = whole[theirs + "post_attention_layernorm.weight"]
        if stage == 0:
            want["transformer.vocab_embedding.weight"] = whole["model.embed_tokens.weight"]
        if stage == pp - 1:
            want["transformer.ln_f.weight"] = whole["model.norm.weight"]
            want["lm_head.weight"] = rows_of(whole["lm_head.weight"], rank, tp)
        same(got, want)


def rows_of(weight: NDArray[Any], rank: int, tp: int) -> NDArray[Any]:
    """The rows of a rank of a vocabulary padded with zeros to a multiple of the ranks."""
    rows = -(-len(weight) // tp)
    padded = np.concatenate([weight, np.zeros((rows * tp - len(weight), weight.shape[1]), weight.dtype)])
    return padded[rank * rows : (rank + 1) * rows]


def same(got: Weights, want: Weights) -> None:
    assert got.keys() == want.keys()  # no stray keys at 11 and more ranks, either
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert np.array_equal(got[name], array), name


@pytest.mark.parametrize(("moe_tp", "moe_ep"), [(4, 1), (2, 2), (1, 4), (0, 0), (0, 2)])
def test_experts(tmp_path: Path, moe_tp: int, moe_ep: int) -> None:
    """Of each expert the rows of w3, then those of w1; ranks of one expert group lie `moe_ep` apart."""
    folder = hf_models.make_hf("mixtral", tmp_path / "mixtral", num_local_experts=4, num_attention_heads=4,
                            num_key_value_heads=2, num_hidden_layers=1)  # fmt: skip
    whole = load_file(folder / "model.safetensors")
    ranks = exported(folder, tmp_path / "out", tp=4, moe_tp=moe_tp, moe_ep=moe_ep)
    moe_ep = moe_ep or 1
    moe_tp = moe_tp or 4 // moe_ep
    for rank, got in enumerate(ranks):
        slot, group = divmod(rank, moe_ep)
        held = range(group * 4 // moe_ep, (group + 1) * 4 // moe_ep)
        names = [f"model.layers.0.block_sparse_moe.experts.{expert}." for expert in held]
        fc = [
            np.concatenate([np.split(whole[name + w + ".weight"], moe_tp)[slot] for w in ("w3", "w1")])
            for name in names
        ]
        proj = [np.split(whole[name + "w2.weight"], moe_tp, 1)[slot] for name in names]
        assert np.array_equal(got["transformer.layers.0.mlp.fc.weight"], np.stack(fc))
        assert np.array_equal(got["transformer.layers.0.mlp.proj.weight"], np.stack(proj))
        assert got["transformer.layers.0.mlp.router.weight"].dtype == np.float32
        back = delivery.diff(delivery.open(folder), delivery.open(tmp_path / "out"), workers=1)
        assert all(tensor.same for tensor in back.tensors)


@pytest.mark.parametrize("recipe", ["qwen3", "qwen3_moe"])
def test_norms_of_q_and_k(recipe: str, tmp_path: Path) -> None:
    """Whole on every rank, under the names that TensorRT-LLM's Attention gives them (layers/attention.py)."""
    folder = hf_models.make_hf(recipe, tmp_path / "hf")
    whole = load_file(folder / "model.safetensors")
    for number, got in enumerate(exported(folder, tmp_path / "out", tp=2, pp=3)):
        layer = number // 2
        for name in "qk":
            ours, theirs = f"attention.{name}_layernorm.weight", f"self_attn.{name}_norm.weight"
            assert np.array_equal(got["transformer.layers.0." + ours], whole[f"model.layers.{layer}.{theirs}"])
        if recipe == "qwen3_moe":
            experts = [f"model.layers.{layer}.mlp.experts.{expert}." for expert in range(6)]
            up_gate = [
                np.concatenate([np.split(whole[f"{name}{part}_proj.weight"], 2)[number % 2] for part in ("up", "gate")])
                for name in experts
            ]
            assert np.array_equal(got["transformer.layers.0.mlp.fc.weight"], np.stack(up_gate))


def test_four_norms_of_gemma_2(tmp_path: Path) -> None:
    """TensorRT-LLM's post_layernorm is the one behind attention (models/gemma/model.py); gamma is gamma - 1, plus 1."""
    folder = hf_models.make_hf("gemma2", tmp_path / "hf", dtype="float32")
    whole = load_file(folder / "model.safetensors")
    names = {
        "input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm",
        "pre_feedforward_layernorm": "pre_feedforward_layernorm",
        "post_feedforward_layernorm": "post_feedforward_layernorm",
    }  # fmt: skip
    for got in exported(folder, tmp_path / "out", tp=2):
        for layer in range(3):
            for ours, theirs in names.items():
                stored = whole[f"model.layers.{layer}.{theirs}.weight"]
                assert np.array_equal(got[f"transformer.layers.{layer}.{ours}.weight"], stored + np.float32(1))
        assert "lm_head.weight" not in got  # GemmaConfig shares the embedding, whatever config.json says


@pytest.mark.parametrize("cut", [False, True])
def test_a_vocabulary_smaller_than_its_padding(cut: bool, tmp_path: Path) -> None:
    """10 tokens over 8 ranks are 2 rows each: the last three ranks hold zeros alone, which TensorRT-LLM demands."""
    folder = hf_models.make_hf("llama", tmp_path / "hf", vocab_size=10)
    whole = load_file(folder / "model.safetensors")
    ranks = exported(folder, tmp_path / "out", tp=8, use_parallel_embedding=cut)
    for rank, got in enumerate(ranks):
        assert np.array_equal(got["lm_head.weight"], rows_of(whole["lm_head.weight"], rank, 8))
        assert got["lm_head.weight"].dtype == ml_dtypes.bfloat16
        want = rows_of(whole["model.embed_tokens.weight"], rank, 8) if cut else whole["model.embed_tokens.weight"]
        assert np.array_equal(got["transformer.vocab_embedding.weight"], want)
    back = delivery.diff(delivery.open(folder), delivery.open(tmp_path / "out"), workers=1)
    assert all(tensor.same for tensor in back.tensors)


def test_embedding_by_columns(tmp_path: Path) -> None:
    folder = hf_models.make_hf("gpt2", tmp_path / "gpt2", vocab_size=99)
    whole = load_file(folder / "model.safetensors")
    ranks = exported(folder, tmp_path / "out", tp=2, use_parallel_embedding=True, embedding_sharding_dim=1)
    for rank, got in enumerate(ranks):
        for ours, theirs in (("vocab", "transformer.wte.weight"), ("position", "transformer.wpe.weight")):
            want = np.split(whole[theirs], 2, 1)[rank]
            assert np.array_equal(got[f"transformer.{ours}_embedding.weight"], want)
        # tied, but not cut alike: the head is written
        assert np.array_equal(got["lm_head.weight"], rows_of(whole["transformer.wte.weight"], rank, 2))


@pytest.mark.parametrize(
    ("tp", "pp", "cut", "shared"),
    [(1, 1, False, False), (2, 1, False, False), (2, 1, True, True), (2, 2, True, False), (1, 2, True, False)],
)
def test_a_tied_head_is_left_out_only_where_the_loader_can_do_without(
    tmp_path: Path, tp: int, pp: int, cut: bool, shared: bool
) -> None:
    folder = hf_models.make_hf("gpt2", tmp_path / "gpt2", vocab_size=99)
    embedding = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    ranks = exported(folder, tmp_path / "out", tp=tp, pp=pp, use_parallel_embedding=cut)
    assert delivery.open(tmp_path / "out").source.metadata["share_embedding_table"] is shared
    for number, got in enumerate(ranks):
        stage, rank = divmod(number, tp)
        if stage == 0:
            want = rows_of(embedding, rank, tp) if cut else embedding
            assert np.array_equal(got["transformer.vocab_embedding.weight"], want)
        assert ("lm_head.weight" in got) == (stage == pp - 1 and not shared)
        if "lm_head.weight" in got:
            assert np.array_equal(got["lm_head.weight"], rows_of(embedding, rank, tp))


def test_all_that_does_not_divide_is_said_at_once(tmp_path: Path) -> None:
    folder = hf_models.make_hf("mixtral", tmp_path / "m", num_attention_heads=12, num_key_value_heads=3,
                            num_local_experts=4, hidden_size=48, head_dim=4, intermediate_size=40)  # fmt: skip
    checkpoint = delivery.open(folder)
    with pytest.raises(PlanError) as caught:
        delivery.plan(checkpoint, "trtllm", tp=9, pp=7, moe_ep=3, moe_tp=3)
    said = str(caught.value)
    for text in (
        "12 heads cannot be split over 9 ranks", "sizes that fit this model: 1, 3, 6, 12",
        "4 experts cannot be split over", "40 cannot be split over 3 ranks", "layers cannot be split over 7 stages",
    ):  # fmt: skip
        assert text in said
    with pytest.raises(PlanError, match="3 heads cannot be split over 2 ranks"):
        delivery.plan(checkpoint, "trtllm", tp=2)
    with pytest.raises(PlanError, match=r"--moe-tp 2 \* --moe-ep 1 = 2"):
        delivery.plan(checkpoint, "trtllm", tp=3, moe_tp=2, moe_ep=1)
    llama = delivery.open(hf_models.make_hf("llama", tmp_path / "l", intermediate_size=98))
    with pytest.raises(PlanError, match="98 cannot be split over 4 ranks"):
        delivery.plan(llama, "trtllm", tp=4)
    with pytest.raises(PlanError, match="no experts to split"):
        delivery.plan(llama, "trtllm", tp=2, moe_ep=2)


def test_impossible_numbers_and_targets_without_ranks(llama: Path) -> None:
    checkpoint = delivery.open(llama)
    for wrong, said in (
        ({"tp": 0}, "--tp: 0 is too small"), ({"tp": 70, "pp": 70}, "number of ranks out of range"),
        ({"embedding_sharding_dim": 2}, "rows and columns"),
        ({"max_shard_size": 1 << 20}, "trtllm has no option --max-shard-size"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            delivery.plan(checkpoint, "trtllm", **wrong)  # type: ignore[arg-type]
    assert any("changes nothing" in w for w in delivery.plan(checkpoint, "trtllm", embedding_sharding_dim=1).warnings)
    for target in ("hf", "gguf"):
        with pytest.raises(UsageError, match="has no option --tp"):
            delivery.plan(checkpoint, target, tp=2)


def test_uneven_stages_are_warned_of(llama: Path) -> None:
    checkpoint = delivery.open(llama)
    uneven = delivery.plan(checkpoint, "trtllm", pp=2)
    assert any("3 layers over 2 stages are 2, 1" in warning for warning in uneven.warnings)
    assert not any("stages" in warning for warning in delivery.plan(checkpoint, "trtllm", pp=3).warnings)
    assert [rank.layers for rank in uneven.ranks] == [(0, 2), (2, 3)]


def test_overflow_to_inf_is_an_error_unless_allowed(llama: Path, tmp_path: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["model.norm.weight"][3] = 1e5
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    checkpoint = delivery.open(llama)
    with pytest.raises(CheckFailed, match="1 values overflow float16"):
        delivery.run(delivery.plan(checkpoint, "trtllm", dtype="float16"), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    allowed = delivery.plan(checkpoint, "trtllm", dtype="float16", allow_overflow=True)
    report = delivery.run(allowed, tmp_path / "allowed", workers=1)
    assert sum(tensor.census.overflow for tensor in report.tensors) == 1
    delivery.run(delivery.plan(checkpoint, "trtllm", dtype="bfloat16"), tmp_path / "bf16", workers=1)


def test_zero_centred_layernorms_are_added_to_as_stored(tmp_path: Path) -> None:
    """Gamma - 1 = 2^-9: 1 + 2^-9 rounds to 1 in bfloat16, in which Megatron, and transformers' Nemotron, add."""
    folder = hf_models.make_hf("nemotron", tmp_path / "n")
    weights = load_file(folder / "model.safetensors")
    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
    weights["model.norm.weight"][:] = 2.0**-9
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for dtype in ("float16", "bfloat16", "float32"):
        (got,) = exported(folder, tmp_path / dtype, dtype=dtype)
        assert set(got["transformer.ln_f.weight"].astype(np.float64).tolist()) == {1.0}
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (got,) = exported(folder, tmp_path / "wide", dtype="float16")
    assert set(got["transformer.ln_f.weight"].astype(np.float64).tolist()) == {1 + 2.0**-9}


def test_an_interrupted_run_goes_on(llama: Path, tmp_path: Path) -> None:
    plan = delivery.plan(delivery.open(llama), "trtllm", tp=4, pp=3)
    delivery.run(plan, tmp_path / "at-once", workers=1)

    def interrupt(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delivery.run(plan, tmp_path / "twice", workers=1, progress=interrupt)
    assert not (tmp_path / "twice").exists()
    report = delivery.run(plan, tmp_path / "twice", workers=1)
    assert 0 < report.resumed < len(report.tensors)
    assert rank_files(tmp_path / "twice") == rank_files(tmp_path / "at-once")
    assert not [warning for warning in report.warnings if "equal bytes" in warning]  # norms of many ranks are copies


def test_weights_stay_plain_where_the_build_quantises(llama: Path, tmp_path: Path) -> None:
    plain = exported(llama, tmp_path / "plain", tp=2)
    for algorithm in ("w8a16", "W4A16"):
        ranks = exported(llama, tmp_path / algorithm, tp=2, quantize=algorithm)
        assert delivery.open(tmp_path / algorithm).source.metadata["quantization"]["quant_algo"] == algorithm.upper()
        for got, want in zip(ranks, plain, strict=True):
            same(got, want)
    with pytest.raises(UsageError, match="trtllm has no quantisation q8_0"):
        delivery.plan(delivery.open(llama), "trtllm", quantize="q8_0")


def test_the_plan_shows_a_row_for_each_rank(llama: Path, crossdock: Callable[..., Any]) -> None:
    words = ("plan", llama, "--to", "trtllm", "--tp", "8", "--pp", "2", "--use-parallel-embedding")
    text = crossdock(*words).ok().stdout
    row = next(line for line in text.splitlines() if "rank0.safetensors" in line).split()
    assert (row[1], row[4:]) == ("15", ["0", "to", "1", "32", "0", "1"])
    ranks = crossdock(*words, "--json").ok().json()["ranks"]
    assert [rank["head_rows"] for rank in ranks] == [0] * 8 + [32] * 8
    assert "Hugging Face" in text


def test_the_next_commands_are_shown(llama: Path, tmp_path: Path, crossdock: Callable[..., Any]) -> None:
    out = tmp_path / "o"
    words = ("--to", "trtllm", "--tp", "2", "--family", "llama", "-o", out, "--no-progress")
    text = crossdock("export", llama, *words).ok().stdout
    assert f"trtllm-build --checkpoint_dir {out} --output_dir {out}-engine" in text
    assert f"crossdock export {llama} --family llama --to hf -o {out}-hf" in text
