"""One model, saved in every layout that Megatron writes, leaves as the same Hugging Face tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Answer
from oracles.files import hf_hashes
from oracles.megatron_state import global_state
from support import megatron_writers
from support.megatron_writers import Ranks

LLAMA, TIED, EXPERTS = (
    "llama-v019-dist-tp2pp2-bf16",
    "qwen2-v019-legacy-tp2-fp32",
    "mixtral-v019-dist-tp2ep2pp2-bf16",
)
DEEPSEEK = "deepseek-v019-dist-tp2pp2-fp32"
ONE = (((0, 1, 2, 3),),)
TWO = (((0, 1),), ((2, 3),))
UNEVEN = (((0,),), ((1, 2, 3),))
VIRTUAL = (((0,), (2,)), ((1,), (3,)))
FIRST_ONE = (("decoder_first_pipeline_num_layers", 1),)

RANKS: dict[str, tuple[str, Ranks]] = {
    "whole": (LLAMA, Ranks(ONE)),
    "tp4": (LLAMA, Ranks(ONE, tp=4)),
    "tp2-pp2": (LLAMA, Ranks(TWO, tp=2)),
    "uneven-pp": (LLAMA, Ranks(UNEVEN, tp=2, more_args=FIRST_ONE)),
    "vpp": (LLAMA, Ranks(VIRTUAL, tp=2)),
    "te-names": (LLAMA, Ranks(TWO, tp=2, experts="te")),
    "views": (LLAMA, Ranks(TWO, tp=2, views=True)),
    "tied-pp2": (TIED, Ranks(TWO, tp=2)),
    "experts-whole": (EXPERTS, Ranks(ONE)),
    "experts-tp2": (EXPERTS, Ranks(TWO, tp=2, etp=2)),
    "experts-ep2": (EXPERTS, Ranks(ONE, ep=2)),
    "experts-ep4-pp2": (EXPERTS, Ranks(TWO, ep=4)),
    "experts-tp2-ep2-diagonal": (EXPERTS, Ranks(ONE, tp=2, ep=2)),
    "experts-tp2-ep4": (EXPERTS, Ranks(ONE, tp=2, ep=4)),
    "experts-tp2-ep2-etp2": (EXPERTS, Ranks(TWO, tp=2, ep=2, etp=2)),
    "experts-te": (EXPERTS, Ranks(TWO, tp=2, ep=2, experts="te")),
    "experts-te-etp2": (EXPERTS, Ranks(ONE, tp=2, ep=2, etp=2, experts="te")),
    "experts-grouped": (EXPERTS, Ranks(ONE, ep=2, experts="grouped")),
    "experts-grouped-etp2": (EXPERTS, Ranks(TWO, tp=2, ep=2, etp=2, experts="grouped")),
    "mla-pp2": (DEEPSEEK, Ranks(TWO)),
}
DIST: dict[str, tuple[str, dict[str, Any]]] = {
    "stacked": (LLAMA, {}),
    "tp4-two-files": (LLAMA, {"tp": 4, "parts": 2}),
    "per-layer-common-file": (LLAMA, {"tp": 2, "stacked": False, "common_file": True}),
    "singleton": (LLAMA, {"tp": 2, "singleton": True}),
    "experts-plain-norms": (EXPERTS, {"tp": 2, "fused": False}),
    "experts-te-norms": (EXPERTS, {"tp": 2, "parts": 3}),
    "experts-per-layer": (EXPERTS, {"stacked": False}),
    "mla-plain-norms": (DEEPSEEK, {"stacked": False, "fused": False, "parts": 2}),
    "mla-te-norms": (DEEPSEEK, {"stacked": False}),
}
Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Checkpoint,
) -> Callable[[str], Any]:
    """Hashes of the real checkpoint's float32 tensors, which other tests hold against Megatron's logits."""
    base = tmp_path_factory.mktemp("expected")

    def hashes(name: str) -> Any:
        out = base / name
        if not out.exists():
            crossdock("export", megatron_checkpoint(name), "--to", "hf", "-o", out, "--dtype", "float32").ok()
        return hf_hashes(out)

    return hashes


@pytest.mark.parametrize("layout", RANKS)
def test_rank_folders(
    layout: str,
    tmp_path: Path,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Checkpoint,
    expected: Callable[[str], Any],
) -> None:
    name, how = RANKS[layout]
    state, args = global_state(megatron_checkpoint(name))
    root = megatron_writers.write_ranks(tmp_path / "root", state, args, how)
    crossdock("export", root, "--to", "hf", "-o", tmp_path / "hf", "--dtype", "float32").ok()
    assert hf_hashes(tmp_path / "hf") == expected(name)


@pytest.mark.parametrize("layout", DIST)
def test_torch_dist(
    layout: str,
    tmp_path: Path,
    crossdock: Callable[..., Answer],
    megatron_checkpoint: Checkpoint,
    expected: Callable[[str], Any],
) -> None:
    name, how = DIST[layout]
    state, args = global_state(megatron_checkpoint(name))
    root = megatron_writers.write_torch_dist(tmp_path / "root", state, args, **how)
    crossdock("export", root, "--to", "hf", "-o", tmp_path / "hf", "--dtype", "float32").ok()
    assert hf_hashes(tmp_path / "hf") == expected(name)


def test_layers_for_multi_token_prediction_stay_behind(
    tmp_path: Path, crossdock: Callable[..., Answer], megatron_checkpoint: Checkpoint, expected: Callable[[str], Any]
) -> None:
    """They stand on the last stage, beside a copy of the embedding: megatron-core 0.19.2, run and read back."""
    state, args = global_state(megatron_checkpoint(LLAMA))
    root = megatron_writers.write_ranks(tmp_path / "r", state, args, Ranks(TWO, more_args=(("mtp_num_layers", 1),)))
    (file,) = root.rglob("mp_rank_00_001/*.pt")
    saved = torch.load(file, weights_only=False)
    embedding = "embedding.word_embeddings.weight"
    saved["model"][embedding] = torch.from_numpy(state[embedding].astype("float32"))
    saved["model"]["mtp.layers.0.eh_proj.weight"] = torch.ones(64, 128)
    torch.save(saved, file)
    answer = crossdock("plan", root, "--to", "hf").ok()
    assert "multi-token prediction" in answer.stdout
    assert "mtp.layers.0.eh_proj.weight" in answer.stdout
    crossdock("export", root, "--to", "hf", "-o", tmp_path / "hf", "--dtype", "float32").ok()
    assert hf_hashes(tmp_path / "hf") == expected(LLAMA)

    saved["model"][embedding][200, -1] += 1  # one value of the copy
    torch.save(saved, file)
    answer = crossdock("export", root, "--to", "hf", "-o", tmp_path / "other")
    assert answer.code == 3
    assert f"tp0.pp1.vpp0/{embedding}: differs from tp0.pp0.vpp0/{embedding}" in answer.stderr
    assert not (tmp_path / "other").exists()
