"""The same rank files from every source: the model of a real Megatron checkpoint in each form that crossdock reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossdock import delivery
from oracles.files import hf_hashes
from oracles.megatron_state import global_state
from oracles.trtllm_files import rank_files, what_the_loader_reads
from support.megatron_writers import Ranks, write_ranks, write_torch_dist

State = dict[str, NDArray[np.float32]]
ROOTS = {"llama": "llama-v019-dist-tp2pp2-bf16", "mixtral": "mixtral-v019-dist-tp2ep2pp2-bf16"}
STAGES = (((0, 1),), ((2, 3),))
CONFIG = {
    "num_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 8,
    "ffn_hidden_size": 160, "normalization": "RMSNorm", "gated_linear_unit": True, "activation": "swiglu",
    "add_bias_linear": False, "layernorm_epsilon": 1e-5, "position_embedding_type": "rope", "rotary_base": 10000,
    "rotary_percentage": 1.0, "max_position_embeddings": 64, "share_embeddings_and_output_weights": False,
    "vocab_size": 250,
}  # fmt: skip
EXPERTS = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 96}


def per_layer(state: State) -> State:
    """Experts as SequentialMLP has them: `local_experts.3.linear_fc1.weight`."""
    return {re.sub(r"\.experts\.(\d+)\.", r".experts.local_experts.\1.", name): array for name, array in state.items()}


def grouped(state: State) -> State:
    """Experts as TEGroupedMLP has them: `linear_fc1.weight3`."""
    return {re.sub(r"\.experts\.(\d+)\.(.*)", r".experts.\2\1", name): array for name, array in state.items()}


def stacked(state: State) -> State:
    """All layers in one tensor, all experts within."""
    places: dict[str, dict[tuple[int, ...], NDArray[np.float32]]] = {}
    for name, array in state.items():
        numbers = tuple(int(n) for n in re.findall(r"\.(?:layers|experts)\.(\d+)\.", name))
        bare = re.sub(r"\.layers\.\d+\.", ".layers.", name)
        places.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.experts.", bare), {})[numbers] = array
    out: State = {}
    for name, found in places.items():
        keys = sorted(found)
        lead = tuple(len({key[axis] for key in keys}) for axis in range(len(keys[0])))
        out[name] = np.stack([found[key] for key in keys]).reshape(*lead, *found[keys[0]].shape)
    return out


FORMS: Mapping[str, Callable[[State], State]] = {"per_layer": per_layer, "grouped": grouped, "stacked": stacked}


def ranks_of(source: Path, out: Path, dtype: str = "bfloat16", **how: Any) -> dict[str, Any]:
    """What an export over 2 by 2 ranks writes, the configuration with it."""
    checkpoint = delivery.open(source, **how)
    delivery.run(delivery.plan(checkpoint, "trtllm", dtype=dtype, tp=2, pp=2), out, workers=1)
    assert delivery.verify(out, checkpoint, workers=1).ok
    return {**rank_files(out), "config.json": what_the_loader_reads(out)}


@pytest.fixture(params=ROOTS)
def model(request: pytest.FixtureRequest, megatron_checkpoint: Callable[[str], Path]) -> tuple[str, Path]:
    return request.param, megatron_checkpoint(ROOTS[request.param])


def test_rank_files_of_megatron(model: tuple[str, Path], tmp_path: Path) -> None:
    name, root = model
    state, args = global_state(root)
    want = ranks_of(root, tmp_path / "want")
    for experts in ("local", "te") if name == "mixtral" else ("local",):
        how = Ranks(STAGES, tp=2, ep=2 if name == "mixtral" else 1, experts=experts)
        assert ranks_of(write_ranks(tmp_path / experts, state, args, how), tmp_path / f"out-{experts}") == want
    dist = write_torch_dist(tmp_path / "dist", state, args, tp=2, stacked=False)
    assert ranks_of(dist, tmp_path / "out-dist") == want


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_state_dicts(model: tuple[str, Path], form: str, kind: str, tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import save_file

    name, root = model
    state, _ = global_state(root)
    made = {key: np.ascontiguousarray(array) for key, array in FORMS[form](state).items()}
    if kind == "pt":
        torch.save({key: torch.from_numpy(array) for key, array in made.items()}, tmp_path / "state.pt")
    else:
        save_file(made, tmp_path / "state.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | (EXPERTS if name == "mixtral" else {})))
    # Megatron's exporter calls the first "llama", and so may the user
    family = "llama" if name == "llama" else None
    got = ranks_of(tmp_path / f"state.{kind}", tmp_path / "out", config=config, family=family)
    assert got == ranks_of(root, tmp_path / "want")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hugging_face_and_gguf(model: tuple[str, Path], dtype: str, tmp_path: Path) -> None:
    _, root = model
    want = ranks_of(root, tmp_path / "want", dtype)
    for to, out in (("hf", tmp_path / "hf"), ("gguf", tmp_path / "m.gguf"), ("trtllm", tmp_path / "trt")):
        delivery.run(delivery.plan(delivery.open(root), to, dtype=dtype), out, workers=1)
        assert ranks_of(out, tmp_path / f"from-{to}", "auto") == want


def test_torch_dcp_with_hugging_face_names(model: tuple[str, Path], tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file
    from torch.distributed.checkpoint import FileSystemWriter

    _, root = model
    delivery.run(delivery.plan(delivery.open(root), "hf"), tmp_path / "hf", workers=1)
    state: dict[str, Any] = load_file(tmp_path / "hf/model.safetensors")
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True)
    got = ranks_of(tmp_path / "dcp", tmp_path / "out", config=tmp_path / "hf")
    assert got == ranks_of(root, tmp_path / "want")


def test_training_files_of_llama_cpp(legacy: Path, tmp_path: Path) -> None:
    """Byte for byte what they become as a Hugging Face folder directly."""
    checkpoint = delivery.open(legacy / "ggcp/v1-adam-past3.ggcp")
    delivery.run(delivery.plan(checkpoint, "hf"), tmp_path / "direct", workers=1)
    delivery.run(delivery.plan(checkpoint, "trtllm", tp=2), tmp_path / "out", workers=1)
    delivery.run(delivery.plan(delivery.open(tmp_path / "out"), "hf"), tmp_path / "back", workers=1)
    assert hf_hashes(tmp_path / "back") == hf_hashes(tmp_path / "direct")


@pytest.mark.parametrize(
    ("name", "said", "meant"),
    [
        ("nemotron-v016-dist-tp2-onep-fp32", "gpt", "nemotron"),
        ("starcoder2-v016-dist-tp2-fp32", "starcoder", "starcoder2"),
        ("starcoder-v016-dist-tp2-fp32", "gpt", "starcoder"),
        ("nemotron-v016-dist-tp2-onep-fp32", "gptnext", "gptnext"),
        ("gptnext-gated-v016-dist-tp2-fp32", "gpt", "gptnext"),
        ("qwen2-v019-legacy-tp2-fp32", "llama", "qwen2"),
        ("mixtral-v019-dist-tp2ep2pp2-bf16", "mixtral", "mixtral"),
    ],
)
def test_model_types_of_megatrons_exporter(
    name: str, said: str, meant: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each is several families: the configuration chooses. A qwen2 as "llama" keeps its biases."""
    from safetensors.numpy import save_file

    root = megatron_checkpoint(name)
    state, args = global_state(root)
    save_file({key: np.ascontiguousarray(array) for key, array in per_layer(state).items()}, tmp_path / "s.safetensors")
    plain = (type(None), bool, int, float, str, list)
    keys = {key: value for key, value in vars(args).items() if isinstance(value, plain)}
    (tmp_path / "args.json").write_text(json.dumps(keys))
    ours = delivery.open(tmp_path / "s.safetensors", config=tmp_path / "args.json", family=said)
    assert ours.config.family == meant
    got = ranks_of(tmp_path / "s.safetensors", tmp_path / "out", config=tmp_path / "args.json", family=said)
    assert got == ranks_of(root, tmp_path / "want")


@pytest.mark.parametrize("case", ["gptnext_ln1p_rope_fp16_tp2", "llama_gqa_tp2_pp2"])
@pytest.mark.parametrize(
    ("more", "base", "scaling"),
    [
        ({"seq_len_interpolation_factor": 4}, 1e4, {"type": "linear", "factor": 4.0}),
        ({"use_rope_scaling": True, "rope_scaling_factor": 16.0, "rotary_base": 500000}, 5e5,
         {"type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}),
        ({"rope_scaling_factor": 8.0}, 1e4, None),  # the helper's default: it says nothing by itself
    ],
)  # fmt: skip
def test_rope_settings_of_megatrons_exporter(
    case: str, more: dict[str, Any], base: float, scaling: dict[str, Any] | None, trtllm_case: Callable[[str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = trtllm_case(case)
    said = json.loads((folder / "case.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(said["transformer_config"] | said["helper"] | more))
    state = folder / "megatron_state_dict.safetensors"
    checkpoint = delivery.open(state, config=tmp_path / "c.json", family=said["model_type"])
    facts = delivery.plan(checkpoint, "trtllm", tp=2).facts
    assert facts["rotary_base"] == base
    found = facts["rotary_scaling"]
    assert (found and {key: value for key, value in found.items() if key != "rope_type"}) == scaling
