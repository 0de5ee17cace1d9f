"""Outcomes of `verify` to make reports of: a small failing one with hostile names, a large one that passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crossdock.codecs.error_stats import ErrorStats
from crossdock.errors import Problem
from crossdock.proof.report.page import Evidence
from crossdock.running.comparisons import LogitsReport, PositionCheck, TokenDifference, TokensReport
from crossdock.running.verify import TensorCheck, VerifyReport

HOSTILE = "</title><script>document.title='taken'</script><img src=x onerror=alert(1)>\u202e\x07\"'&"


def figures(relative: float) -> ErrorStats:
    return ErrorStats(1000, 4 * relative, 1000 * relative**2, 4.0, 1000.0)


def logits(count: int, *, ok: bool, seed: int = 0) -> LogitsReport:
    random = np.random.default_rng(seed)
    places = tuple(
        PositionCheck(
            x // 512, x % 512, int(random.integers(1000)), float(random.lognormal(-3)), float(random.lognormal(-5)),
            float(random.lognormal(-9)), 5, 5 if random.random() < 0.97 else 6, 4, 2.0, 2.1,
        )
        for x in range(count)
    )  # fmt: skip
    failed = () if ok else ("the relative distance is 0.2, more than 0.053",)
    return LogitsReport(
        ok, "llama.cpp", f"tokenizers, {HOSTILE}", count, count + 5, -(-count // 512), "10 × the noise of q8_0", None,
        0.053, failed, 0.5, 0.01 if ok else 0.2, 2e-4, 0.97, 0.95, 19.5, 19.7, places, (), 1.0,
    )  # fmt: skip


def large() -> Evidence:
    """1,200 tensors of 80 layers in three types, 2,000 positions."""
    random = np.random.default_rng(0)
    tensors = []
    for layer in range(80):
        for name in ("attn_norm", *(f"part_{i}" for i in range(14))):
            dtype = "float32" if name == "attn_norm" else "q8_0" if random.random() < 0.8 else "float16"
            noise = {"float32": 0.0, "q8_0": 0.0053, "float16": 0.0002}[dtype] * float(random.lognormal(0, 0.1))
            error = figures(noise) if noise else None
            tensors.append(TensorCheck(f"blk.{layer}.{name}.weight", dtype, 17_408, "equal", 0, error))
    report = VerifyReport(True, tuple(tensors), (), 1 << 34, 100.0, logits(2000, ok=True))
    return Evidence(report, None, Path("model-q8_0.gguf"), Path("runs/iter_0010000"), "megatron")


def failing() -> Evidence:
    """Every status, problems, an infinite error, logits beyond their limit, and names that are an attack."""
    tensors = (
        TensorCheck("blk.0.attn_q.weight", "q8_0", 17_408, "equal", 0, figures(0.0053)),
        TensorCheck(HOSTILE, "q8_0", 17_408, "different", 8192, figures(1.3)),
        TensorCheck("blk.1.ffn_up.weight", "q8_0", 52_224, "different", 64, ErrorStats(10, 1.0, 1.0, 0.0, 0.0)),
        TensorCheck("blk.2.ffn_up.weight", "q8_0", 52_224, "missing"),
        TensorCheck("blk.9.more.weight", "float16", 128, "unexpected"),
    )
    problems = (Problem("the output has another value", where=HOSTILE, expected="1e-06", got="1e-05"),)
    tokens = TokensReport(False, 42, f"sentencepiece, {HOSTILE}", (TokenDifference(HOSTILE, (7, 9), (8, 9)),))
    report = VerifyReport(False, tensors, problems, 139_264, 0.1, logits(40, ok=False), tokens)
    return Evidence(report, None, Path(f"out/{HOSTILE.replace('/', '')}.gguf"), Path("src"), "hf")
