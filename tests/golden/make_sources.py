"""Writes sources.tar.xz beside this file: tiny checkpoints of every family, their tensors all zero.

A plan reads no tensor data, so zeros will do, and an archive of zeros is small. The checkpoints are inputs: they are
written once, by transformers and by the writers of the tests, and must not change when crossdock does. Run this only
to add one: PYTHONPATH=src:tests:tests/formats:benchmarks python tests/golden/make_sources.py, then
regenerate.py.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import make_torch_dist
import numpy as np
import yaml
from test_megatron_bridge import model_section

from crossdock import delivery
from crossdock.errors import CrossdockError
from oracles import megatron_names, megatron_state
from support import hf_models, megatron_writers

HERE = Path(__file__).parent
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
YARN_DEEPSEEK = YARN | {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
# models whose tensors are others than those of the recipes: recipe -> what is changed
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral-tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": None}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3-untied-bias": ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": YARN}),
    "qwen3_moe-tied": ("qwen3_moe", {"tie_word_embeddings": True}),
    "mixtral-window": ("mixtral", {"sliding_window": 40}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "starcoder2-untied": ("starcoder2", {"tie_word_embeddings": False}),
    "stablelm-tied": ("stablelm", {"tie_word_embeddings": True}),
    "stablelm-qk-norm": ("stablelm", {"qk_layernorm": True}),
    "gpt_neox-no-bias": ("gpt_neox", {"attention_bias": False}),
    "gpt_neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "gemma-bias": ("gemma", {"attention_bias": True}),
    "gemma2-untied": ("gemma2", {"tie_word_embeddings": False}),
    "nemotron-bias": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "nemotron-tied": ("nemotron", {"tie_word_embeddings": True}),
    "falcon-bias": ("falcon", {"bias": True}),
    "deepseek_v2-whole-query": ("deepseek_v2", {"q_lora_rank": None, "num_hidden_layers": 27, "n_routed_experts": 4}),
    "deepseek_v2-yarn": ("deepseek_v2", {"rope_parameters": YARN_DEEPSEEK}),
    "deepseek_v3-whole-query": ("deepseek_v3", {"q_lora_rank": None}),
    "deepseek_v3-yarn": ("deepseek_v3", {"rope_parameters": YARN_DEEPSEEK}),
    "deepseek_v3-bias": ("deepseek_v3", {"attention_bias": True}),
}
# Hugging Face folders of what transformers has no class for come from Megatron checkpoints of tests/data/families
FROM_MEGATRON = ("nemotron_nas-v016-dist-tp2-fp32", "nemotron_nas-all-v016-legacy-tp2-fp32")
LAYOUTS = {
    "llama": "llama-v016-dist-tp4-perlayer-fp32",
    "nemotron": "nemotron-v016-dist-tp2-onep-fp32",
    "mixtral": "mixtral-v019-dist-tp2ep2pp2-bf16",
    "deepseek": "deepseek-v019-dist-tp2pp2-fp32",
}
EXPERTS = {
    "hidden": 64, "heads": 8, "groups": 4, "head_dim": 16, "ffn": 96, "vocab": 256, "experts": 6, "expert_ffn": 48,
}  # fmt: skip


def zeroed(folder: Path) -> None:
    """Overwrite the tensors of every safetensors file in `folder` with zeros."""
    for file in folder.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start:] = bytes(len(data) - start)
        file.write_bytes(data)


def hugging_face(root: Path) -> None:
    """Every recipe of tests/support/hf_models.py and MORE, and the families of FROM_MEGATRON."""
    for name, (recipe, changes) in ({recipe: (recipe, {}) for recipe in hf_models.RECIPES} | MORE).items():
        zeroed(hf_models.make_hf(recipe, root / "hf" / name, **changes))
        (root / "hf" / name / "generation_config.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in FROM_MEGATRON:
            with tarfile.open(HERE.parent / "data/families" / f"{name}.tar.xz") as archive:
                archive.extractall(folder, filter="data")
            short = name.partition("-v016")[0]
            delivery.export(Path(folder) / name, root / "hf" / short, "hf", dtype="bfloat16")
            zeroed(root / "hf" / short)
            (root / "hf" / f"{short}.manifest.json").unlink()


def gguf(root: Path) -> None:
    """The same models as GGUF, where llama.cpp has them."""
    (root / "gguf").mkdir()
    for folder in sorted((root / "hf").iterdir()):
        out = root / "gguf" / f"{folder.name}.gguf"
        try:
            delivery.export(folder, out, "gguf", dtype="float16")
        except CrossdockError as error:
            print(f"gguf cannot hold {folder.name}: {str(error).splitlines()[0]}")
            continue
        out.with_name(f"{out.name}.manifest.json").unlink()


def megatron(root: Path) -> None:
    """The families that tests/data has no checkpoint of: in stacked torch_dist keys, and in rank files."""
    for recipe in ("falcon", "falcon-new", "falcon-one-norm", "gemma", "gemma2"):
        with tempfile.TemporaryDirectory() as folder:
            hf = hf_models.make_hf(recipe, Path(folder) / "hf", dtype="float32", vocab_size=204)
            zeroed(hf)
            state, args = megatron_names.falcon(hf) if recipe.startswith("falcon") else megatron_names.gemma(hf)
        megatron_writers.write_torch_dist(root / "megatron" / recipe, state, args)
        uneven = (("decoder_first_pipeline_num_layers", 1),)
        ranks = megatron_writers.Ranks((((0,),), ((1, 2),)), tp=2, more_args=uneven)
        megatron_writers.write_ranks(root / "megatron" / f"{recipe}-ranks", state, args, ranks)
    with mock.patch.object(make_torch_dist, "random_bfloat16", lambda _rng, count, *, norm: np.zeros(count, np.uint16)):
        make_torch_dist.write(root / "megatron/qwen3_moe", EXPERTS, 4, 2, 1, sparse=False)


def megatron_layouts(root: Path) -> None:
    """Checkpoints of tests/data in the other layouts of Megatron, and without args beside Bridge's run_config.yaml."""
    ranks = megatron_writers.Ranks(((tuple(range(4)),),), tp=2)
    for short, name in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(HERE.parent / "data/checkpoints" / f"{name}.tar.xz") as archive:
                archive.extractall(folder, filter="data")
            values, args = megatron_state.global_state(Path(folder) / name)
        state = {key: np.zeros_like(tensor) for key, tensor in values.items()}
        base = root / "megatron"
        megatron_writers.write_torch_dist(base / f"{short}-per-layer", state, args, stacked=False, fused=False)
        if args.num_experts:
            for experts in ("local", "te", "grouped"):
                how = replace(ranks, experts=experts, ep=2)
                megatron_writers.write_ranks(base / f"{short}-ranks-{experts}", state, args, how)
        else:
            megatron_writers.write_ranks(base / f"{short}-ranks", state, args, replace(ranks, views=True))
            megatron_writers.write_torch_dist(
                base / f"{short}-singleton", state, args, singleton=True, common_file=True
            )
            bridge = base / f"{short}-bridge"
            megatron_writers.write_torch_dist(bridge, state, args, common_file=True)
            (bridge / "iter_0000010/common.pt").unlink()
            sections = {"checkpoint": {"save": "/x"}, "model": model_section(vars(args))}
            (bridge / "iter_0000010/run_config.yaml").write_text(yaml.safe_dump(sections))


def main() -> None:
    """Make all of them and pack them without times and owners."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        hugging_face(root)
        gguf(root)
        megatron(root)
        megatron_layouts(root)
        with tarfile.open(HERE / "sources.tar.xz", "w:xz", preset=9) as archive:
            for file in sorted(root.rglob("*")):
                if file.is_file():
                    info = archive.gettarinfo(file, str(file.relative_to(root)))
                    info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
                    with file.open("rb") as data:
                        archive.addfile(info, data)


if __name__ == "__main__":
    sys.exit(main())
