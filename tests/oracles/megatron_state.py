"""Weights of real Megatron checkpoints as {Hugging Face name: float32 array}, by torch and hand-written
rules.

Independent of crossdock: torch itself unpickles the files (Megatron is not installed: its classes become
empty stand-ins), and every family's names are spelled out below. Only for the trusted checkpoints of
tests/data.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
State = dict[str, Array]

MLA = {
    "linear_q_down_proj": "q_a_proj",
    "q_layernorm": "q_a_layernorm",
    "linear_q_up_proj": "q_b_proj",
    "linear_kv_down_proj": "kv_a_proj_with_mqa",
    "kv_layernorm": "kv_a_layernorm",
    "linear_kv_up_proj": "kv_b_proj",
    "linear_proj": "o_proj",
}


class _StandIn:
    """Any class that cannot be imported: keeps what the pickle gives it."""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("megatron"):
            return type(name, (_StandIn,), {"__module__": module})
        return super().find_class(module, name)


def _torch_load(source: Any) -> Any:
    import torch

    pickles = SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__="pickle")
    return torch.load(source, map_location="cpu", weights_only=False, pickle_module=pickles)


def megatron_state(root: Path, family: str, masters: str = "") -> State:
    """All model weights of a checkpoint root in Hugging Face names and order, float32, vocabulary clipped.

    masters  before the names of the optimizer's weights, which are read instead ("optimizer.state.param.")
    """
    state, args = global_state(root, masters)
    return _to_hf(state, args, family)


def global_state(root: Path, masters: str = "") -> tuple[State, Any]:
    """All model weights in Megatron's own names, whole, with global layer and expert numbers; and the args.

    Keys are `decoder.layers.{layer}.…` and `…mlp.experts.{expert}.linear_fc1.weight`; fc1 is [gates, ups].
    """
    iteration = next(root.glob("iter_*"))
    return _torch_dist(iteration, masters) if (iteration / "metadata.json").exists() else _rank_files(iteration)


def _numpy(tensor: Any) -> Array:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def _torch_dist(folder: Path, masters: str = "") -> tuple[State, Any]:
    """Global tensors by per-layer key, and the args."""
    with (folder / ".metadata").open("rb") as file:
        metadata = _Unpickler(file).load()
    places = {(index.fqn, tuple(index.offset or ())): place for index, place in metadata.storage_data.items()}

    def blob(key: str, offset: tuple[int, ...]) -> io.BytesIO:
        place = places[key, offset]
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            return io.BytesIO(file.read(place.length))

    state: State = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not hasattr(entry, "chunks") or not key.startswith(masters) or key.startswith("optimizer") != bool(masters):
            continue
        whole = np.full(tuple(entry.size), np.nan, np.float32)
        for chunk in entry.chunks:
            box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[box] = _numpy(_torch_load(blob(key, tuple(chunk.offsets))))
        key = key.removeprefix(masters)
        stacked = re.match(r"decoder\.layers\.(?!\d)(.*)", key)
        if stacked:
            state |= {f"decoder.layers.{i}.{stacked[1]}": whole[i] for i in range(len(whole))}
        else:
            state[key] = whole
    for key in [k for k in state if ".experts.experts." in k]:
        tensor = state.pop(key)
        prefix, part = key.split("experts.experts.")
        state |= {f"{prefix}experts.{e}.{part}": tensor[e] for e in range(len(tensor))}
    common = folder / "common.pt"
    args = (
        _torch_load(common)["args"] if common.exists() else _torch_load(blob("common_state/shard_0_1", ()))[0]["args"]
    )
    return state, args


def _rank_files(folder: Path) -> tuple[State, Any]:
    """The same from mp_rank_* folders: TP, PP, VPP, EP, expert tensor parallel 1."""
    files = {f.parent.name: _torch_load(f) for f in sorted(folder.glob("mp_rank_*/model_optim_rng.pt"))}
    args = next(iter(files.values()))["args"]
    pipeline, experts = args.pipeline_model_parallel_size, args.expert_model_parallel_size
    assert args.num_experts is None or args.expert_tensor_parallel_size == 1
    pieces: dict[str, dict[int, Array]] = {}
    for name, loaded in files.items():
        numbers = [int(n) for n in name.removeprefix("mp_rank_").split("_")]
        tensor_rank = numbers.pop(0)
        pipe_rank = numbers.pop(0) if pipeline > 1 else 0
        expert_rank = numbers.pop(0) if experts > 1 else 0
        chunks = sorted(key for key in loaded if re.fullmatch(r"model\d*", key))
        layers = args.num_layers // (pipeline * len(chunks))
        for turn, chunk in enumerate(chunks):
            first = (turn * pipeline + pipe_rank) * layers
            for key, tensor in loaded[chunk].items():
                if tensor is None or key.endswith("_extra_state"):
                    continue
                whole = re.sub(r"layers\.(\d+)", lambda m, n=first: f"layers.{int(m[1]) + n}", key)  # type: ignore[misc]
                one = re.search(
                    r"experts\.(?:local_experts\.(\d+)\.linear_fc\d\.weight|linear_fc\d\.weight(\d+))$", whole
                )
                if one:
                    number = int(one[1] or one[2]) + expert_rank * args.num_experts // experts
                    layer, layer_part = whole[: one.start()], re.search(r"linear_fc\d", one[0])
                    assert layer_part
                    pieces[f"{layer}experts.{number}.{layer_part[0]}.weight"] = {0: _numpy(tensor)}
                else:
                    pieces.setdefault(whole, {})[tensor_rank] = _numpy(tensor)
    return {key: _join(key, [ranks[r] for r in sorted(ranks)], args.swiglu) for key, ranks in pieces.items()}, args


def _join(key: str, ranks: list[Array], swiglu: bool) -> Array:
    if len(ranks) == 1 or "layernorm" in key or "layer_norm" in key or "router" in key:
        return ranks[0]
    if key.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return np.concatenate(ranks, axis=1)
    if key.endswith(("linear_proj.bias", "linear_fc2.bias", "position_embeddings.weight")):
        return ranks[0]
    if "linear_fc1" in key and swiglu:
        halves = [np.split(rank, 2) for rank in ranks]
        return np.concatenate([gate for gate, _ in halves] + [up for _, up in halves])
    return np.concatenate(ranks)


def _to_hf(state: Mapping[str, Array], args: Any, family: str) -> State:
    vocabulary = args.vocab_size
    names = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "lm_head.weight",
    }
    names |= {f"decoder.final_layernorm.{kind}": f"model.norm.{kind}" for kind in ("weight", "bias")}
    if family == "gpt2":
        names = {
            "embedding.word_embeddings.weight": "transformer.wte.weight",
            "embedding.position_embeddings.weight": "transformer.wpe.weight",
            "decoder.final_layernorm.weight": "transformer.ln_f.weight",
            "decoder.final_layernorm.bias": "transformer.ln_f.bias",
        }
    out: State = {}
    for key, tensor in state.items():
        layer = re.match(r"decoder\.layers\.(\d+)\.(.*)", key)
        if layer:
            convert = _gpt2_layer if family == "gpt2" else _layer
            prefix = f"transformer.h.{layer[1]}." if family == "gpt2" else f"model.layers.{layer[1]}."
            out |= {prefix + name: value for name, value in convert(layer[2], tensor, args, family).items()}
        elif key == "output_layer.weight" and not args.untie_embeddings_and_output_weights:
            continue
        elif key in names:
            clip = "word_embeddings" in key or "output_layer" in key
            out[names[key]] = tensor[:vocabulary] if clip else tensor
    return out


def _qkv(tensor: Array, args: Any) -> tuple[Array, Array, Array]:
    """linear_qkv, rows [group, (query heads, key, value), head_dim], as three tensors."""
    heads = args.num_attention_heads
    groups = args.num_query_groups if args.group_query_attention else heads
    parts = tensor.reshape(groups, heads // groups + 2, args.kv_channels, *tensor.shape[1:])
    tail = tensor.shape[1:]
    return parts[:, :-2].reshape(-1, *tail), parts[:, -2].reshape(-1, *tail), parts[:, -1].reshape(-1, *tail)


def _layer(key: str, tensor: Array, args: Any, family: str) -> State:
    """One tensor of a layer for the families with model.layers names."""
    inner, kind = key.rsplit(".", 1)
    if kind.startswith("layer_norm_"):
        kind = kind.removeprefix("layer_norm_")
        inner = "input_layernorm" if inner.endswith("linear_qkv") else "pre_mlp_layernorm"
    norms = {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"}
    if inner in norms:
        return {f"{norms[inner]}.{kind}": tensor}
    if inner.startswith("self_attention."):
        part = inner.removeprefix("self_attention.")
        if args.multi_latent_attention:
            return {f"self_attn.{MLA[part]}.{kind}": tensor}
        if part == "linear_qkv":
            three = _qkv(tensor, args)
            return {f"self_attn.{x}_proj.{kind}": value for x, value in zip("qkv", three, strict=True)}
        attention = {"linear_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
        return {f"self_attn.{attention[part]}.{kind}": tensor}
    mixtral = family == "mixtral"
    moe = "block_sparse_moe" if mixtral else "mlp"
    if inner == "mlp.router":
        return {f"{moe}.gate.{'e_score_correction_bias' if kind == 'expert_bias' else kind}": tensor}
    where = re.fullmatch(r"mlp\.(?:(experts\.\d+|shared_experts)\.)?linear_fc([12])", inner)
    assert where, key
    prefix = f"{moe}.{where[1]}." if where[1] else "mlp."
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    if where[2] == "2":
        return {f"{prefix}{down}.{kind}": tensor}
    if not args.swiglu:
        return {f"{prefix}{up}.{kind}": tensor}
    first, second = np.split(tensor, 2)
    return {f"{prefix}{gate}.{kind}": first, f"{prefix}{up}.{kind}": second}


def _gpt2_layer(key: str, tensor: Array, args: Any, _: str) -> State:
    inner, kind = key.rsplit(".", 1)
    if kind.startswith("layer_norm_"):
        kind = kind.removeprefix("layer_norm_")
        inner = "input_layernorm" if inner.endswith("linear_qkv") else "pre_mlp_layernorm"
    names = {
        "input_layernorm": "ln_1",
        "pre_mlp_layernorm": "ln_2",
        "self_attention.linear_qkv": "attn.c_attn",
        "self_attention.linear_proj": "attn.c_proj",
        "mlp.linear_fc1": "mlp.c_fc",
        "mlp.linear_fc2": "mlp.c_proj",
    }
    value = np.concatenate(_qkv(tensor, args)) if inner.endswith("linear_qkv") else tensor
    return {f"{names[inner]}.{kind}": value.T if value.ndim == 2 else value}
