"""Megatron's per-rank checkpoints as sources: ranks, stages, views, older names, files that do not belong together."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron_sources import LLAMA, MIXTRAL, VPP, Checkpoint, copied, read_array

from crossdock.errors import ConfigError, CrossdockError, FormatError, NotACheckpointError, UsageError
from crossdock.formats import megatron
from oracles.megatron_state import global_state
from support import megatron_writers
from support.megatron_writers import Ranks


@pytest.mark.parametrize(
    ("name", "ranks", "layers", "parts"),
    [
        (
            "qwen2-v019-legacy-tp2-fp32",
            {"tp": 2, "pp": 1, "ep": 1, "vpp": 1},
            [(0, 4)],
            {"tp0.pp0.vpp0", "tp1.pp0.vpp0"},
        ),
        (
            VPP,
            {"tp": 2, "pp": 2, "ep": 1, "vpp": 2},
            [(0, 1), (1, 2), (2, 3), (3, 4)],
            {f"tp{t}.pp{p}.vpp{v}" for t in (0, 1) for p in (0, 1) for v in (0, 1)},
        ),
        (
            MIXTRAL,
            {"tp": 2, "pp": 2, "ep": 2, "etp": 1, "vpp": 1},
            [(0, 2), (2, 4)],
            {f"{r}.pp{p}.vpp0" for r in ("tp0", "tp1", "etp0.ep0", "etp0.ep1") for p in (0, 1)},
        ),
    ],
)
def test_rank_files(
    name: str, ranks: Mapping[str, int], layers: list[Any], parts: set[str], megatron_checkpoint: Checkpoint
) -> None:
    source = megatron.open_source(megatron_checkpoint(name))
    assert source.format == "megatron_rank"
    assert ranks.items() <= source.ranks.items()
    assert sorted(source.partitions["layer"].values()) == layers
    assert {part for part, _ in source.tensors} == parts
    assert not [key for _, key in source.tensors if key.startswith("model")]


def test_rank_files_hold_the_values_that_torch_finds(megatron_checkpoint: Checkpoint) -> None:
    root = megatron_checkpoint(VPP)
    source, (state, _) = megatron.open_source(root), global_state(root)
    key = "self_attention.linear_proj.weight"
    for (stage, chunk), (layer, _) in source.partitions["layer"].items():
        pieces = [read_array(source, f"tp{t}.pp{stage[1]}.vpp{chunk[1]}", f"decoder.layers.0.{key}") for t in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), state[f"decoder.layers.{layer}.{key}"])


def test_views_and_transposed_storage(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    state, args = global_state(megatron_checkpoint(LLAMA))
    root = megatron_writers.write_ranks(tmp_path / "r", state, args, Ranks((((0, 1, 2, 3),),), views=True))
    source = megatron.open_source(root)
    key = "decoder.layers.3.mlp.linear_fc2.weight"
    stored = source.tensors["tp0.pp0.vpp0", key]
    assert stored.extents[0].strides == (1, stored.shape[0])
    np.testing.assert_array_equal(read_array(source, "tp0.pp0.vpp0", key), state[key])
    assert sum(extent.nbytes for t in source.tensors.values() for extent in t.extents) < source.files[0].size


def test_grouped_experts_are_shown_as_what_they_are_views_of(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    state, args = global_state(megatron_checkpoint("mixtral-v019-dist-tp2ep2pp2-bf16"))
    how = Ranks((((0, 1, 2, 3),),), ep=2, experts="grouped")
    source = megatron.open_source(megatron_writers.write_ranks(tmp_path / "r", state, args, how))
    got = read_array(source, "etp0.ep1.pp0.vpp0", "decoder.layers.2.mlp.experts.weight1")
    assert got.shape == (2, 64, 192)
    for local, expert in enumerate((2, 3)):
        np.testing.assert_array_equal(got[local].T, state[f"decoder.layers.2.mlp.experts.{expert}.linear_fc1.weight"])
    down = read_array(source, "etp0.ep1.pp0.vpp0", "decoder.layers.2.mlp.experts.weight2")
    np.testing.assert_array_equal(down[1].T, state["decoder.layers.2.mlp.experts.3.linear_fc2.weight"])


OLDER = {
    "decoder.layers.{}.input_layernorm": "input_norm",
    "decoder.layers.{}.pre_mlp_layernorm": "post_attention_norm",
    "decoder.layers.{}.self_attention.linear_qkv": "self_attention.query_key_value",
    "decoder.layers.{}.self_attention.linear_proj": "self_attention.dense",
    "decoder.layers.{}.mlp.linear_fc1": "mlp.dense_h_to_4h",
    "decoder.layers.{}.mlp.linear_fc2": "mlp.dense_4h_to_h",
}


def older_checkpoint(root: Path, state: Mapping[str, Any], args: Any, version: float) -> Path:
    """One rank in the nested dicts of Megatron-LM v2.6 and core_v0.10.0's legacy models."""
    encoder: dict[str, Any] = {}
    for key, tensor in megatron_writers.plain_names(state).items():
        if key.startswith("decoder.layers."):
            _, _, number, rest = key.split(".", 3)
            name, kind = rest.rsplit(".", 1)
            encoder[f"layers.{number}.{OLDER['decoder.layers.{}.' + name]}.{kind}"] = torch.from_numpy(tensor)
    encoder["final_norm.weight"] = torch.from_numpy(state["decoder.final_layernorm.weight"])
    language = {
        "embedding": {"word_embeddings": {"weight": torch.from_numpy(state["embedding.word_embeddings.weight"])}},
        "encoder": encoder,
        "output_layer": {"weight": torch.from_numpy(state["output_layer.weight"])},
    }
    changes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "expert_tensor_parallel_size": None}
    values = argparse.Namespace(**megatron_writers.simple_args(args, **changes))
    folder = root / "iter_0000010" / "mp_rank_00"
    folder.mkdir(parents=True)
    saved = {"args": values, "checkpoint_version": version, "iteration": 10, "model": {"language_model": language}}
    torch.save(saved, folder / "model_optim_rng.pt")
    return root


def test_models_from_before_core(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    state, args = global_state(megatron_checkpoint(LLAMA))
    source = megatron.open_source(older_checkpoint(tmp_path / "r", state, args, 3.0))
    assert {name for _, name in source.tensors} == set(megatron_writers.plain_names(state))
    key = "decoder.layers.1.self_attention.linear_qkv.weight"
    np.testing.assert_array_equal(read_array(source, "tp0.pp0.vpp0", key), state[key])
    with pytest.raises(FormatError, match=r"checkpoint_version 1\.0"):
        megatron.open_source(older_checkpoint(tmp_path / "old", state, args, 1.0))


def test_a_missing_rank_file_is_named(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = copied(megatron_checkpoint, MIXTRAL, tmp_path / "r")
    shutil.rmtree(root / "iter_0000010" / "mp_rank_01_000_001")
    shutil.rmtree(root / "iter_0000010" / "mp_rank_01_001_001")
    with pytest.raises(FormatError) as caught:
        megatron.open_source(root)
    text = caught.value.text()
    assert "mp_rank_01_000_001: this rank's folder is missing" in text
    assert "mp_rank_01_001_001: this rank's folder is missing" in text
    assert "tensor 2, pipeline 2, expert 2" in text


def test_a_rank_folder_without_its_file(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = copied(megatron_checkpoint, VPP, tmp_path / "r")
    (root / "iter_0000010/mp_rank_01_001/model_optim_rng.pt").unlink()
    with pytest.raises(NotACheckpointError, match=r"mp_rank_01_001: model_optim_rng\.pt is missing"):
        megatron.open_source(root)


def test_a_folder_that_the_run_did_not_have(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = copied(megatron_checkpoint, VPP, tmp_path / "r")
    shutil.copytree(root / "iter_0000010/mp_rank_01_001", root / "iter_0000010/mp_rank_02_000")
    with pytest.raises(FormatError, match="mp_rank_02_000: rank out of range for this run"):
        megatron.open_source(root)


def rewrite_ranks(root: Path, change: Callable[[dict[str, Any]], None], only: str = "") -> None:
    for file in root.glob(f"iter_*/{only or '*'}/model_optim_rng.pt"):
        state = torch.load(file, weights_only=False)
        change(state)
        torch.save(state, file)


def ranks_of(tmp_path: Path, megatron_checkpoint: Checkpoint, how: Ranks) -> Path:
    state, args = global_state(megatron_checkpoint(LLAMA))
    return megatron_writers.write_ranks(tmp_path / "r", state, args, how)


TWO = Ranks((((0, 1),), ((2, 3),)), tp=2)


def multiplied() -> list[Any]:
    """A list that is small in the file and 10^16 values when it is written out."""
    out: list[Any] = [1] * 100
    for _ in range(7):
        out = [out] * 100
    return out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("args"), ConfigError, "pipeline or an expert rank"),
        (lambda s: setattr(s["args"], "pipeline_model_parallel_size", 1), FormatError, "do not match the run"),
        (lambda s: setattr(s["args"], "num_layers", 6), FormatError, "does not hold the layers"),
        (lambda s: setattr(s["args"], "num_layers", 5), ConfigError, "do not divide evenly"),
        (lambda s: setattr(s["args"], "tensor_model_parallel_size", 10**7), ConfigError, "implausibly many ranks"),
        (lambda s: setattr(s["args"], "expert_model_parallel_size", 10**7), FormatError, "do not match the run"),
        (lambda s: setattr(s["args"], "data_path", multiplied()), ConfigError, "implausibly many values"),
        (
            lambda s: s["model"].update({f"decoder.layers.{10**8}.x": torch.ones(1)}),
            FormatError,
            "up to number 100000000",
        ),
        (lambda s: s.update(args=7), ConfigError, "args are not a namespace"),
        (lambda s: s.pop("model"), FormatError, "not the model chunks"),
    ],
)
def test_args_that_do_not_fit_the_files(
    tmp_path: Path, megatron_checkpoint: Checkpoint, change: Any, error: type[CrossdockError], message: str
) -> None:
    root = ranks_of(tmp_path, megatron_checkpoint, TWO)
    rewrite_ranks(root, change)
    with pytest.raises(error, match=message):
        megatron.open_source(root)


def test_files_of_another_iteration(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = ranks_of(tmp_path, megatron_checkpoint, TWO)
    rewrite_ranks(root, lambda s: s.update(iteration=20), only="mp_rank_01_001")
    with pytest.raises(FormatError, match="of another iteration") as caught:
        megatron.open_source(root)
    assert "mp_rank_01_001" in caught.value.text()


def test_expert_tensor_parallel_that_folders_cannot_tell(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    state, args = global_state(megatron_checkpoint("mixtral-v019-dist-tp2ep2pp2-bf16"))
    root = megatron_writers.write_ranks(tmp_path / "r", state, args, Ranks((((0, 1, 2, 3),),), tp=2, ep=2))
    rewrite_ranks(root, lambda s: setattr(s["args"], "expert_tensor_parallel_size", 4))
    with pytest.raises(UsageError, match="does not divide tensor parallel size 2"):
        megatron.open_source(root)


def test_optimizers_beside_the_weights_are_left_out(tmp_path: Path, megatron_checkpoint: Checkpoint) -> None:
    root = ranks_of(tmp_path, megatron_checkpoint, TWO)
    before = megatron.open_source(root)
    rewrite_ranks(root, lambda s: s.update(optimizer={"state": {0: {"exp_avg": torch.zeros(1000)}}}))
    (root / "iter_0000010/mp_rank_00_000/distrib_optim.pt").write_bytes(b"x" * 500)
    after = megatron.open_source(root)
    assert after.tensors.keys() == before.tensors.keys()
    assert after.skipped == {"optimizer (4 files)": "optimizer state", "distrib_optim.pt (1 files)": "optimizer state"}
    assert after.skipped_bytes >= before.skipped_bytes + 4 * 4000 + 500
