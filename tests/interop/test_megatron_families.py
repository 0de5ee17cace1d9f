"""Families in Megatron's layouts: what Hugging Face's tiny models become by the rules of Megatron-Bridge and slime
(`oracles.megatron_of_hf`), saved by hand-written writers in torch_dist and rank files, comes back as the same tensors,
and transformers and llama.cpp compute the logits of the model that it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from oracles.llama_engine import llama_logits
from oracles.megatron_of_hf import hybrid_of_hf, megatron_of_hf, slime_of_hf
from oracles.transformers_engine import transformers_logits
from support.megatron_writers import Ranks, write_ranks, write_torch_dist

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
import family_cases
from family_checks import stored, without_nextn


@dataclass(frozen=True)
class Model:
    """A recorded case of tests/families and how it is saved.

    config   keys that differ from the recorded config.json, where Megatron has no word for what stands there
    family   what --family must say, where args are those of another family
    stacked  the layers are alike, so that torch_dist keeps them in one tensor
    """

    case: str
    config: Mapping[str, Any] = field(default_factory=dict)
    family: str | None = None
    stacked: bool = False
    args: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[tuple[tuple[int, ...], ...], ...] = (((0, 1),), ((2,),))
    tp: int = 2
    ep: int = 2
    gguf: float | None = 1e-4


# a group of experts counts by its best topk / group_topk in Megatron: by its best two, as everywhere, when that is 2
TWO_OF_A_GROUP = {"num_experts_per_tok": 2, "topk_group": 1}
HALVES = (((0, 1),), ((2, 3),))
UNEVEN = {"decoder_first_pipeline_num_layers": 2}
INTERLEAVED = {"dsa_indexer_rope_interleaved": True}
MODELS = {
    "glm4_moe": Model("glm4_moe", TWO_OF_A_GROUP, stages=HALVES),
    "glm4_moe-mtp": Model("glm4_moe-mtp", TWO_OF_A_GROUP, args=UNEVEN),
    "hy_v3-mtp": Model("hy_v3-mtp", family="hy_v3", args=UNEVEN),
    "glm4_moe_lite-mtp": Model("glm4_moe_lite-mtp", TWO_OF_A_GROUP, family="glm4_moe_lite", args=UNEVEN, tp=1),
    "deepseek_v3-kimi": Model("deepseek_v3-kimi", stages=HALVES, tp=1),
    "deepseek_v32": Model("deepseek_v32", TWO_OF_A_GROUP, args=UNEVEN, tp=1),
    "glm_moe_dsa-mtp": Model("glm_moe_dsa-mtp", TWO_OF_A_GROUP, args=UNEVEN | INTERLEAVED, tp=1),
    "minimax_m2": Model("minimax_m2", args=UNEVEN, stacked=True),
    "olmoe": Model("olmoe", args=UNEVEN, stacked=True, tp=1),
    "gpt_oss": Model("gpt_oss", args=UNEVEN, stacked=True),
    "qwen3_next": Model("qwen3_next", stages=HALVES),
    "qwen3_next-mtp": Model("qwen3_next-mtp", stages=HALVES),
    "qwen3_5_text-mtp": Model("qwen3_5_text-mtp", stages=HALVES),
    # MambaMixer's norm has the epsilon 1e-5, whatever args say
    "nemotron_h": Model("nemotron_h", {"layer_norm_epsilon": 1e-5}, stages=HALVES),
    "qwen3_5_moe_text": Model("qwen3_5_moe_text", stages=HALVES, args={"position_embedding_type": "mrope"}),
}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in MODELS -> its Hugging Face folder with logits.npy of transformers beside it."""
    base = tmp_path_factory.mktemp("hf")

    def made(name: str) -> Path:
        folder = base / name
        if not folder.exists():
            case = family_cases.case(MODELS[name].case)
            config = {**case.config, **MODELS[name].config}
            family_cases.write_folder(folder, config, case.state())
            np.save(base / f"{name}.tokens.npy", case.tokens)
            np.save(base / f"{name}.logits.npy", transformers_logits(without_nextn(folder), case.tokens))
        return folder

    return made


def saved(name: str, form: str, hf: Path, root: Path) -> Path:
    """`hf` as a run in Megatron would have saved it."""
    model = MODELS[name]
    config = json.loads((hf / "config.json").read_text())
    made = hybrid_of_hf if "layers_block_type" in config else megatron_of_hf
    state, args = made(stored(hf), config, **model.args)
    if form == "slime":
        state, args = slime_of_hf(state, stored(hf), config, args)
        return write_torch_dist(root, state, args, stacked=False)
    if form == "torch_dist":
        return write_torch_dist(root, state, args, tp=2, parts=2, stacked=model.stacked)
    how = Ranks(model.stages, tp=model.tp, ep=model.ep, experts="local" if form == "local_ranks" else "te")
    return write_ranks(root, state, args, how)


FORMS = [(name, form) for name in MODELS for form in ("torch_dist", "ranks", "local_ranks")]
FORMS += [(name, "slime") for name in MODELS if name.startswith("qwen3_")]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_model_comes_back(name: str, form: str, tmp_path: Path, hugging_face: Callable[[str], Path]) -> None:
    hf = hugging_face(name)
    root = saved(name, form, hf, tmp_path / "root")
    crossdock.export(root, tmp_path / "hf", "hf", family=MODELS[name].family)
    back, expected = stored(tmp_path / "hf"), stored(hf)
    assert sorted(back) == sorted(expected)
    for key, tensor in expected.items():
        np.testing.assert_allclose(back[key], tensor, rtol=0, atol=2**-23, err_msg=key)
    tokens, logits = (np.load(hf.parent / f"{name}.{what}.npy") for what in ("tokens", "logits"))
    assert np.abs(transformers_logits(without_nextn(tmp_path / "hf"), tokens) - logits).max() <= 1e-5


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].gguf])
def test_llama_cpp_computes_its_logits(name: str, tmp_path: Path, hugging_face: Callable[[str], Path]) -> None:
    hf = hugging_face(name)
    root = saved(name, "ranks", hf, tmp_path / "root")
    crossdock.export(root, tmp_path / "m.gguf", "gguf", family=MODELS[name].family)
    tokens, logits = (np.load(hf.parent / f"{name}.{what}.npy") for what in ("tokens", "logits"))
    assert np.abs(llama_logits(tmp_path / "m.gguf", tokens) - logits).max() <= MODELS[name].gguf
