"""`verify --logits`: an export computes what its source does, in three engines; planted faults do not pass."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import crossdock
from crossdock.cli import main
from crossdock.errors import CheckFailed, EnvironmentProblem
from crossdock.proof import limits as limiting
from crossdock.proof.engines import ask, registry
from crossdock.proof.texts import MOST, WINDOW, read_asked
from oracles.rewriting import Folder, Gguf, rewrite_gguf, rewrite_hf
from oracles.transformers_engine import transformers_logits
from support import hf_models

ROOT = Path(__file__).parents[2]
KJV = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
TEXT = "In the beginning God created the heaven and the earth."
IDS = np.random.default_rng(0).integers(0, 203, 48).tolist()  # of the recipes in tests/support/hf_models.py


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*map(str, args), "--no-progress"])
    assert result.exit_code == code, result.output
    return result


def llama(folder: Path, **options: Any) -> tuple[Path, Path]:
    """A tiny llama of transformers, and its export."""
    source, out = hf_models.make_hf("llama", folder / "hf", dtype="float32"), folder / "model.gguf"
    crossdock.export(source, out, "gguf", **options)
    return source, out


@pytest.mark.parametrize("quantize", [None, "q8_0", "q4_0", "q4_k_m", "q6_k"])
@pytest.mark.parametrize("engine", [None, "llama.cpp"])
def test_an_export_of_a_trained_model_passes(tmp_path: Path, quantize: str | None, engine: str | None) -> None:
    out = tmp_path / "kjv.gguf"
    crossdock.export(
        KJV, out, "gguf", tokenizer=TOKENIZER, **({"quantize": quantize} if quantize else {"dtype": "f32"})
    )
    found = crossdock.verify(out, KJV, tokenizer=TOKENIZER, logits=TEXT, logits_engine=engine)
    logits = found.logits
    assert found.ok
    assert logits is not None
    assert (logits.tokens, logits.windows, len(logits.positions)) == (17, 1, 17)
    assert logits.perplexity_source == pytest.approx(19.556, abs=0.001)
    if quantize is None:
        assert logits.max_abs <= 1e-4
        assert (logits.top1, logits.top5) == (1, 1)
        assert logits.perplexity_output == pytest.approx(logits.perplexity_source, rel=1e-5)
    else:
        assert 0 < logits.kl < 0.2
        assert logits.limit_distance is not None
        assert logits.limit_distance / 20 < logits.distance < logits.limit_distance


def test_transformers_reads_what_was_exported(tmp_path: Path) -> None:
    crossdock.export(KJV, tmp_path / "hf", "hf", dtype="f32", tokenizer=TOKENIZER)
    found = crossdock.verify(tmp_path / "hf", KJV, tokenizer=TOKENIZER, logits=TEXT, logits_engine="transformers")
    assert found.ok
    assert found.logits is not None
    assert 0 < found.logits.max_abs <= 1e-4


@pytest.mark.parametrize(("recipe", "engine"), [("llama3", None), ("llama3", "llama.cpp"), ("gpt2", "llama.cpp")])
def test_other_models_pass(recipe: str, engine: str | None, tmp_path: Path) -> None:
    source = hf_models.make_hf(recipe, tmp_path / "hf", dtype="float32")
    crossdock.export(source, tmp_path / "model.gguf", "gguf")
    found = crossdock.verify(tmp_path / "model.gguf", source, logits=IDS, logits_engine=engine).logits
    assert found is not None
    assert found.ok, found.failed or found.problems


@pytest.mark.parametrize("dtype", ["bf16", "q8_0"])
def test_a_router_may_change_its_mind(dtype: str, tmp_path: Path) -> None:
    """Rounded activations choose another expert at a few positions: far away there, near elsewhere."""
    source, out = hf_models.make_hf("mixtral", tmp_path / "hf", dtype="float32"), tmp_path / "model.gguf"
    crossdock.export(source, out, "gguf", **({"quantize": dtype} if dtype == "q8_0" else {"dtype": dtype}))
    ids = np.random.default_rng(0).integers(0, 203, 60).tolist()
    assert crossdock.verify(out, source, logits=ids, logits_engine="llama.cpp").ok


def swapped(one: str, other: str) -> Callable[[Gguf], None]:
    return lambda model: model.swap(one, other)


def rope_order(model: Gguf) -> None:
    rows = model.array("blk.0.attn_q.weight")
    model.put("blk.0.attn_q.weight", rows.reshape(8, 4, 2, -1).swapaxes(1, 2).reshape(rows.shape))


def plus_one(model: Gguf) -> None:
    model.put("output_norm.weight", model.array("output_norm.weight") + 1)


FAULTS: dict[str, Callable[[Gguf], None]] = {
    "k and v swapped": swapped("blk.1.attn_k.weight", "blk.1.attn_v.weight"),
    "gate and up swapped": swapped("blk.2.ffn_gate.weight", "blk.2.ffn_up.weight"),
    "layers swapped": swapped("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"),
    "rope order": rope_order,
    "one added to a norm": plus_one,
    "eps": lambda model: model.set("llama.attention.layer_norm_rms_epsilon", 1e-2),
    "rope base": lambda model: model.set("llama.rope.freq_base", 500000.0),
}


@pytest.mark.parametrize("engine", [None, "llama.cpp"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, engine: str | None, tmp_path: Path) -> None:
    source, out = llama(tmp_path)
    rewrite_gguf(out, tmp_path / "bad.gguf", FAULTS[fault])
    bad = crossdock.verify(tmp_path / "bad.gguf", source, logits=IDS, logits_engine=engine).logits
    assert bad is not None
    assert not bad.ok
    assert bad.limit_max_abs is not None
    assert bad.max_abs > 10 * bad.limit_max_abs
    assert "largest difference" in bad.failed[0]


def test_a_fault_in_a_quantised_model_is_caught(tmp_path: Path) -> None:
    source, out = llama(tmp_path, quantize="q8_0")
    rewrite_gguf(out, tmp_path / "bad.gguf", FAULTS["rope base"])
    bad = crossdock.verify(tmp_path / "bad.gguf", source, logits=IDS, logits_engine="llama.cpp").logits
    assert bad is not None
    assert "relative distance" in bad.failed[0]


@pytest.mark.parametrize("fault", ["eps", "rope base"])
def test_few_bits_hide_no_fault_of_the_header(fault: str, tmp_path: Path) -> None:
    """The source is far from any 4-bit output; llama.cpp is not far from the reference forward of the same weights."""
    out = tmp_path / "kjv.gguf"
    crossdock.export(KJV, out, "gguf", quantize="q4_0", tokenizer=TOKENIZER)
    good = crossdock.verify(out, KJV, tokenizer=TOKENIZER, logits=TEXT, logits_engine="llama.cpp").logits
    assert good is not None
    assert good.ok
    assert good.by_engine is not None
    assert good.by_engine.limit_distance is not None
    assert good.by_engine.distance < good.by_engine.limit_distance < 0.1 * (good.limit_distance or 0)
    rewrite_gguf(out, tmp_path / "bad.gguf", FAULTS[fault])
    bad = crossdock.verify(
        tmp_path / "bad.gguf", KJV, tokenizer=TOKENIZER, logits=TEXT, logits_engine="llama.cpp"
    ).logits
    assert bad is not None
    assert bad.failed[-1].startswith("llama.cpp by itself: the relative distance is ")
    assert max(one.engine_distance or 0 for one in bad.positions) > good.by_engine.limit_distance


def test_transformers_alone_is_exact(tmp_path: Path) -> None:
    """float32 into bfloat16 loses; what transformers then computes of it in float32 is the reference forward's."""
    source = tmp_path / "source"

    def change(folder: Folder) -> None:
        folder.tensors = {name: tensor * 1.01 for name, tensor in folder.tensors.items()}

    rewrite_hf(hf_models.make_hf("llama", tmp_path / "hf", dtype="float32"), source, change)
    crossdock.export(source, tmp_path / "out", "hf", dtype="bfloat16")
    found = crossdock.verify(tmp_path / "out", source, logits=IDS, logits_engine="transformers").logits
    assert found is not None
    assert found.ok
    assert found.by_engine is not None
    assert found.by_engine.max_abs < 1e-5 < found.max_abs


def test_a_folder_with_a_fault_is_caught_in_transformers(tmp_path: Path) -> None:
    source = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32")
    crossdock.export(source, tmp_path / "out", "hf")

    def change(folder: Folder) -> None:
        folder.config["rms_norm_eps"] = 1e-2

    rewrite_hf(tmp_path / "out", tmp_path / "bad", change)
    asked = ("--against", source, "--logits", ",".join(map(str, IDS)), "--logits-engine", "transformers")
    run("verify", tmp_path / "out", *asked)
    text = run("verify", tmp_path / "bad", *asked, code=1).stdout
    assert "NOT EQUAL" in text
    assert "the largest difference is" in text


def onnx_model(path: Path, head: np.ndarray, embed: np.ndarray | None = None) -> None:
    """input_ids -> embedding -> logits: a graph of two nodes."""
    nodes = [
        helper.make_node("Gather", ["embed", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "head"], ["logits"]),
    ]
    if embed is None:
        embed = np.random.default_rng(1).standard_normal((head.shape[1], head.shape[0])).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch", 2, "past", 4]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", head.shape[1]])],
        [numpy_helper.from_array(embed, "embed"), numpy_helper.from_array(head, "head")],
    )
    path.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path / "model.onnx")


def test_onnxruntime_is_asked(tmp_path: Path) -> None:
    head = np.random.default_rng(2).standard_normal((8, 203)).astype(np.float32)
    onnx_model(tmp_path / "onnx", head)
    out = tmp_path / "out"
    out.mkdir()
    request = {"model": str(tmp_path / "onnx"), "windows": [[1, 5, 7], [2]], "out": str(out)}
    ask.ask(registry.engine("onnxruntime"), request)
    embed = np.random.default_rng(1).standard_normal((203, 8)).astype(np.float32)
    for number, window in enumerate(request["windows"]):
        got = np.load(out / f"{number}.npy")
        np.testing.assert_allclose(got, embed[window] @ head, atol=1e-5)


def test_an_output_that_only_an_engine_reads(tmp_path: Path) -> None:
    """Another model in ONNX: told by logits alone. One with another vocabulary: told in a sentence."""
    source = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32")
    onnx_model(tmp_path / "onnx", np.ones((8, 203), np.float32))
    asked = ("--against", source, "--logits", "1,2,3", "--logits-engine", "onnxruntime", "--json")
    found = json.loads(run("verify", tmp_path / "onnx", *asked, code=1).stdout)
    assert found["tensors"] == []
    assert found["logits"]["failed"]
    onnx_model(tmp_path / "small", np.ones((8, 100), np.float32))
    found = json.loads(run("verify", tmp_path / "small", *asked, code=1).stdout)
    assert "logits of the wrong shape" in found["logits"]["problems"][0]["what"]


def test_an_output_that_only_an_engine_reads_passes(tmp_path: Path) -> None:
    """A graph that looks up, for three tokens, what the source computes for them in this order."""
    source = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32")
    head = np.zeros((8, 203), np.float32)
    ids = [11, 50, 7]
    head[:3] = transformers_logits(source, np.array([ids]))[0]
    embed = np.zeros((203, 8), np.float32)
    embed[ids, [0, 1, 2]] = 1
    onnx_model(tmp_path / "onnx", head, embed)
    good = crossdock.verify(tmp_path / "onnx", source, logits=ids, logits_engine="onnxruntime")
    assert good.ok
    assert good.logits is not None
    assert good.logits.max_abs <= 1e-4
    embed[ids, [1, 0, 2]], embed[ids, [0, 1, 2]] = 1, [0, 0, 1]
    onnx_model(tmp_path / "swapped", head, embed)
    assert not crossdock.verify(tmp_path / "swapped", source, logits=ids, logits_engine="onnxruntime").ok


def test_memory_and_progress(tmp_path: Path) -> None:
    source = hf_models.make_hf("llama", tmp_path / "wide", dtype="bfloat16", vocab_size=200_000)  # 2 x 51 MB as float32
    crossdock.export(source, tmp_path / "model.gguf", "gguf")
    checkpoint, memory, seen = crossdock.open(source), 8 << 20, []
    tracemalloc.start()
    try:
        found = crossdock.verify(
            tmp_path / "model.gguf", checkpoint, logits=list(range(12)), memory=memory, workers=1,
            progress=lambda done, total, name: seen.append((done, total)),
        )  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.ok
    assert peak <= memory + 80 * 200_000 + (2 << 20)  # one row of logits, compared in float64
    counted = [done for done, total in seen if total == seen[-1][1]]
    assert counted == sorted(counted)
    assert counted[-1] > seen[-1][1] // 2


def test_json(tmp_path: Path) -> None:
    source, out = llama(tmp_path)
    found = json.loads(run("verify", out, "--against", source, "--logits", "1,2,3,4", "--json").stdout)["logits"]
    assert set(found) == {
        "ok", "engine", "reader", "tokens", "total_tokens", "windows", "why", "limit_max_abs", "limit_distance",
        "failed",
        "max_abs", "distance", "kl", "top1", "top5", "perplexity_source", "perplexity_output", "positions", "problems",
        "seconds", "by_engine", "reference",
    }  # fmt: skip
    assert [one["token"] for one in found["positions"]] == [1, 2, 3, 4]
    assert set(found["positions"][0]) == {
        "window", "index", "token", "max_abs", "distance", "kl", "best_source", "best_output", "top5", "loss_source",
        "loss_output", "engine_distance",
    }  # fmt: skip
    assert found["positions"][-1]["loss_source"] is None
    assert found["ok"] is True


def test_what_a_text_may_be(tmp_path: Path) -> None:
    source = crossdock.open(KJV)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4))
    said = read_asked(TEXT, source, tmp_path, TOKENIZER)
    assert read_asked(f"@{tmp_path}/text.txt", source, tmp_path, TOKENIZER) == said
    assert "tokenizer.json" in said.reader
    assert read_asked(f"@{tmp_path}/ids.npy", source, tmp_path).windows == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    assert read_asked("7, 8,", source, tmp_path).windows == ((7, 8),)
    assert read_asked("1984", source, tmp_path, TOKENIZER).windows != ((1984,),)  # a text
    size = min(WINDOW, source.config.max_position_embeddings)
    long = read_asked([5] * 10_000, source, tmp_path)
    assert (len(long.windows[0]), sum(map(len, long.windows)), long.total) == (size, MOST, 10_000)


def test_a_gguf_is_a_tokenizer_too(tmp_path: Path) -> None:
    crossdock.export(KJV, tmp_path / "kjv.gguf", "gguf", tokenizer=TOKENIZER)
    source = crossdock.open(KJV)
    by_library = read_asked(TEXT, source, tmp_path, TOKENIZER)
    assert read_asked(TEXT, source, tmp_path / "kjv.gguf").windows == by_library.windows


def test_long_texts_are_windows_of_their_own(tmp_path: Path) -> None:
    source, out = llama(tmp_path)
    np.save(tmp_path / "ids.npy", np.array([IDS, IDS]))
    found = crossdock.verify(
        out, source, logits=f"@{tmp_path}/ids.npy", logits_engine="llama.cpp", memory=8 << 20
    ).logits
    assert found is not None
    assert found.windows == 2
    first, second = found.positions[: len(IDS)], found.positions[len(IDS) :]
    assert [one.loss_source for one in first] == [one.loss_source for one in second]
    assert [one.kl for one in first] == [one.kl for one in second]


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    source, out = llama(tmp_path)
    against = ("--against", source)
    assert "which text or tokens" in run("verify", out, *against, "--logits-engine", "llama.cpp", code=2).stderr
    assert (
        "expected llama.cpp" in run("verify", out, *against, "--logits", "1,2", "--logits-engine", "x", code=2).stderr
    )
    wrong = run("verify", out, *against, "--logits", "1,2", "--logits-engine", "transformers", code=2)
    assert "does not read this output" in wrong.stderr
    assert "token ids out of range" in run("verify", out, *against, "--logits", "1,999", code=2).stderr
    assert "requires a tokenizer" in run("verify", source, *against, "--logits", "hello", code=2).stderr
    assert "no token ids can be" in run("verify", out, *against, "--logits", f"@{tmp_path}/no.npy", code=2).stderr
    assert "to do: use --memory" in run("verify", out, *against, "--logits", "1,2", "--memory", "100kB", code=2).stderr


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = llama(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = ("--against", source, "--logits", "1,2", "--logits-engine", "llama.cpp")
    missing = run("verify", out, *asked, code=4).stderr
    assert "llama.cpp is not installed" in missing
    assert 'pip install "crossdock[llama]"' in missing


def test_an_engine_that_refuses_says_why(tmp_path: Path) -> None:
    source, out = llama(tmp_path)
    bad = tmp_path / "bad.gguf"
    rewrite_gguf(out, bad, lambda model: model.set("llama.block_count", 7))
    found = json.loads(
        run(
            "verify", bad, "--against", source, "--logits", "1,2", "--logits-engine", "llama.cpp", "--json", code=1
        ).stdout
    )["logits"]
    assert "llama.cpp does not take the model" in found["problems"][0]["what"]
    assert "blk.3" in found["problems"][0]["cause"]
    assert found["max_abs"] == "nan"


CHILDREN = {
    "abort": ("import os, sys; sys.stderr.write('x.cpp:7: GGML_ASSERT(a == b) failed\\nframe\\n'); sys.stderr.flush()\n"
              "os.abort()"),
    "hang": "import time; time.sleep(60)",
    "version": "raise SystemExit(3)",
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("abort", CheckFailed, "ended by SIGABRT.*GGML_ASSERT"),
        ("hang", CheckFailed, "took more than 1 s"),
        ("version", EnvironmentProblem, "not the version"),
    ],
)
def test_a_child_that_dies(what: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILDREN[what])
    engine = registry.Engine("e", script, ("numpy",), "", "*", None)
    with pytest.raises(error, match=f"(?s){said}"):
        ask.ask(engine, {"model": "m"}, timeout=1 if what == "hang" else 60)


def test_noise_is_what_the_formats_say() -> None:
    """Half a step, evenly spread: 2^-11 / √12 of a binade for float16, an 8th of that precision for bfloat16."""
    assert limiting.noise("float32") == 0
    assert limiting.noise("bfloat16") == pytest.approx(8 * limiting.noise("float16"), rel=0.05)
    assert limiting.noise("q8_0") == pytest.approx(2.1 / 127 / math.sqrt(12), rel=0.2)  # 32 normals reach 2.1 σ
    assert limiting.noise("q4_0") > limiting.noise("q5_0") > 10 * limiting.noise("q8_0") / 2
