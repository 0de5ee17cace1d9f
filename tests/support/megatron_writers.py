"""Saves one set of Megatron weights in any layout of Megatron: torch_dist key styles, per-rank folders.

The rules are written out here a second time, forwards, from the source of megatron-core (names, tensor
parallel cuts, expert grids, stages); they share nothing with crossdock. Weights come from
`oracles.megatron_state.global_state`.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from torch_dist import Chunk, Saving, Tensor
from torch_files import Instance, Name, write_archive

Array = NDArray[np.float32]
State = Mapping[str, Array]
Scales = Mapping[str, tuple[float, float]]
COLUMNS = ("linear_proj.weight", "linear_fc2.weight", "out_proj.weight")
WHOLE = (
    "linear_proj.bias", "linear_fc2.bias", "position_embeddings.weight", "gate_weight", "out_norm.weight",
    "enorm.weight", "hnorm.weight",
)  # fmt: skip
# parts that torch_dist saves under keys of their own and ranks have in one tensor: core/ssm/*.py
SPLIT = re.compile(r"(.*(?:in_proj|conv1d)\.(?:weight|bias))\.(query|key|value|z|x|B|C|dt|beta|alpha)")


@dataclass(frozen=True)
class Ranks:
    """How a per-rank checkpoint is cut: `stages[p][v]` are the layers of chunk v on pipeline rank p.

    experts  "local" (`local_experts.0.`), "te" (`weight0`) or "grouped" (`weight1`, as GroupedMLP keeps it)
    views    tensors share one storage per rank, and some are stored transposed
    """

    stages: tuple[tuple[tuple[int, ...], ...], ...]
    tp: int = 1
    ep: int = 1
    etp: int = 1
    experts: str = "local"
    views: bool = False
    more_args: tuple[tuple[str, Any], ...] = ()


def plain_names(state: State) -> dict[str, Array]:
    """Norms under the names of Megatron's local spec, whatever they are called in `state`."""
    pairs = (
        ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
        ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
    )
    out = {}
    for key, tensor in state.items():
        for fused, plain in pairs:
            key = key.replace(fused, plain)
        out[key] = tensor
    return out


def fused_names(state: State) -> dict[str, Array]:
    """Norms under TransformerEngine's names: part of the linear layer behind them, but not before experts."""
    mla = any(".linear_kv_up_proj." in key for key in state)
    out = {}
    for key, tensor in plain_names(state).items():
        if mla:
            key = key.replace(".q_layernorm.", ".linear_q_up_proj.layer_norm_")
            key = key.replace(".kv_layernorm.", ".linear_kv_up_proj.layer_norm_")
        elif ".self_attention.input_layernorm." not in key:  # slime's own layer
            key = key.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
        if key.replace("pre_mlp_layernorm", "mlp.router") not in state:
            key = key.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")
        out[key] = tensor
    return out


def simple_args(args: Any, **changes: Any) -> dict[str, Any]:
    """The plain values of an args namespace, some replaced."""
    plain = (type(None), bool, int, float, str, list)
    return {name: value for name, value in vars(args).items() if isinstance(value, plain)} | changes


def cut(key: str, tensor: Array, rank: int, ranks: int, swiglu: bool) -> Array:
    """One tensor parallel rank's part of a whole tensor, as Megatron's layers keep it."""
    if (
        ranks == 1
        or "layernorm" in key
        or "layer_norm" in key
        or "final_norm" in key
        or "router" in key
        or key.endswith(WHOLE)
    ):
        return tensor
    if key.endswith(COLUMNS):
        return np.split(tensor, ranks, axis=1)[rank]
    if "linear_fc1" in key and swiglu:
        gate, up = np.split(tensor, 2)
        return np.concatenate([np.split(gate, ranks)[rank], np.split(up, ranks)[rank]])
    return np.split(tensor, ranks)[rank]


def write_ranks(root: Path, state: State, args: Any, how: Ranks, scales: Scales | None = None) -> Path:
    """A per-rank checkpoint (`mp_rank_*/model_optim_rng.pt`); returns its root.

    scales  of fp8 training, by global module: kept as TransformerEngine keeps them, of all experts of a rank together
    """
    import torch

    pipeline = len(how.stages)
    chunks = len(how.stages[0])
    changes = {
        "tensor_model_parallel_size": how.tp,
        "pipeline_model_parallel_size": pipeline,
        "virtual_pipeline_model_parallel_size": chunks if chunks > 1 else None,
        "expert_model_parallel_size": how.ep,
        "expert_tensor_parallel_size": how.etp,
        "moe_grouped_gemm": how.experts != "local",
        "transformer_impl": "transformer_engine" if how.experts == "te" else "local",
        "ckpt_format": "torch",
    }
    namespace = argparse.Namespace(**simple_args(args, **changes, **dict(how.more_args)))
    names = fused_names(state) if how.experts == "te" else plain_names(state)
    for stage, of_stage in enumerate(how.stages):
        for number in range(max(how.tp, how.ep * how.etp)):
            tensor_rank, expert_rank = number % how.tp, number // how.etp % how.ep
            folder = f"mp_rank_{tensor_rank:02d}"
            folder += f"_{stage:03d}" if pipeline > 1 else ""
            folder += f"_{expert_rank:03d}" if how.ep > 1 else ""
            saved: dict[str, Any] = {"args": namespace, "checkpoint_version": 3.0, "iteration": 10}
            for turn, layers in enumerate(of_stage):
                ends = (stage == 0 and turn == 0, stage == pipeline - 1 and turn == chunks - 1)
                part = dict(_rank_part(names, args, how, (tensor_rank, expert_rank, number % how.etp), layers, ends))
                held = (args.num_experts or 0) // how.ep
                part |= dict(
                    _rank_states(scales or {}, how, layers, range(expert_rank * held, (expert_rank + 1) * held))
                )
                saved["model" if chunks == 1 else f"model{turn}"] = _as_torch(part, views=how.views)
            target = root / "iter_0000010" / folder
            target.mkdir(parents=True, exist_ok=True)
            torch.save(saved, target / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text("10")
    return root


def _rank_part(
    state: State,
    args: Any,
    how: Ranks,
    ranks: tuple[int, int, int],
    layers: Sequence[int],
    ends: tuple[bool, bool],
) -> Iterator[tuple[str, Any]]:
    """Keys and values of one model chunk on one rank; `ends`: whether it is the first and the last of all."""
    tensor_rank, expert_rank, expert_tensor_rank = ranks
    first, last = ends
    held = (args.num_experts or 0) // how.ep
    gated = args.swiglu or getattr(args, "gated_linear_unit", False)
    grouped: dict[str, list[Array]] = {}
    split: dict[str, list[Array]] = {}
    for key, tensor in state.items():
        layer = re.match(r"decoder\.layers\.(\d+)\.", key)
        if layer:
            if int(layer[1]) not in layers:
                continue
            local = f"decoder.layers.{layers.index(int(layer[1]))}." + key[layer.end() :]
        elif key.startswith("embedding.") and not first:
            if last and "word_embeddings" in key and not args.untie_embeddings_and_output_weights:
                # a stage without the embedding has its own copy of a tied head
                yield "output_layer.weight", cut(key, tensor, tensor_rank, how.tp, args.swiglu)
            continue
        elif not key.startswith("embedding.") and not last:
            continue
        else:
            local = key.replace(".transformer_layer.", ".mtp_model_layer.")
        expert = re.match(r"(.*\.mlp\.experts\.)(\d+)\.(linear_fc[12])\.(weight|bias)", local)
        whole_width = re.search(r"\.[qk]_layernorm\.weight", key) and tensor.size > args.kv_channels
        if SPLIT.fullmatch(local):  # one tensor of all parts, each cut by itself
            name = SPLIT.fullmatch(local)[1]  # type: ignore[index]
            name = name.replace("mixer.conv1d.", "mixer.conv1d_") if how.experts == "te" else name  # 0.19, and before
            split.setdefault(name, []).append(np.split(tensor, how.tp)[tensor_rank])
        elif expert is None and whole_width and not args.multi_latent_attention:  # Bridge's minimax_m2_provider.py
            yield local, np.split(tensor, how.tp)[tensor_rank]
        elif expert is None:
            yield local, cut(key, tensor, tensor_rank, how.tp, gated)
        elif expert_rank * held <= int(expert[2]) < (expert_rank + 1) * held:
            number, part = (
                int(expert[2]) - expert_rank * held,
                cut(key, tensor, expert_tensor_rank, how.etp, gated),
            )
            if how.experts == "local":
                yield f"{expert[1]}local_experts.{number}.{expert[3]}.{expert[4]}", part
            elif how.experts == "te":
                yield f"{expert[1]}{expert[3]}.{expert[4]}{number}", part
            else:
                grouped.setdefault(expert[1] + ("weight1" if expert[3].endswith("1") else "weight2"), []).append(part)
    yield from ((name, np.concatenate(parts)) for name, parts in split.items())
    for name, parts in grouped.items():
        # GroupedMLP keeps [experts, in, out] in one matrix: weight1 [hidden, ...], weight2 [..., hidden]
        memory = np.stack([part.T for part in parts])
        shape = (args.hidden_size, -1) if name.endswith("weight1") else (-1, args.hidden_size)
        yield name, memory.reshape(shape)
    extra = np.zeros(0, np.uint8) if how.experts == "te" else None
    yield "decoder.layers.0.self_attention.linear_proj._extra_state", extra
    yield "decoder.layers.0.mlp.linear_fc2._extra_state", BytesIO() if how.experts == "te" else None


def _rank_states(scales: Scales, how: Ranks, layers: Sequence[int], held: range) -> Iterator[tuple[str, Any]]:
    """`_extra_state` of the modules of a model chunk, under its own layer and expert numbers."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for module, pair in scales.items():
        match = re.match(r"decoder\.layers\.(\d+)\.(.*)", module)
        if match is None or int(match[1]) not in layers:
            continue
        local = f"decoder.layers.{layers.index(int(match[1]))}.{match[2]}"
        expert = re.match(r"(.*\.mlp\.experts\.)(\d+)(\..*)", local)
        if expert is None:
            yield f"{local}._extra_state", extra_state([pair], tensor=how.experts == "te")
        elif int(expert[2]) in held and how.experts == "te":
            grouped.setdefault(f"{expert[1][:-1]}{expert[3]}", []).append(pair)
        elif int(expert[2]) in held:
            name = f"{expert[1]}local_experts.{int(expert[2]) - held.start}{expert[3]}"
            yield f"{name}._extra_state", extra_state([pair], tensor=False)
    for name, pairs in grouped.items():
        yield f"{name}._extra_state", extra_state(pairs, tensor=True)


def extra_state(pairs: Sequence[tuple[float, float]], *, tensor: bool) -> Any:
    """What TransformerEngine saves: inputs' scales, weights', outputs'; newer as a uint8 tensor of a pickle, with the
    reciprocal alone, older as an io.BytesIO of torch.save."""
    import torch

    inverse = torch.tensor([p[0] for p in pairs] + [p[1] for p in pairs] + [1.0] * len(pairs))
    told = {"fp8_checkpoint": True, "num_gemms": len(pairs)}
    state = {"amax_history_fwd": torch.zeros(4, 3 * len(pairs)), "extra_fp8_variables": told}
    if tensor:
        state["scale_fwd"] = 1 / inverse
        return np.frombuffer(pickle.dumps(state), np.uint8).copy()
    out = BytesIO()
    torch.save(state | {"scale_fwd": 1 / inverse, "scale_inv_fwd": inverse}, out)
    return BytesIO(out.getvalue())


def _dist_states(
    scales: Scales, layers: int, experts: int, *, stacked: bool, tensor: bool
) -> Iterator[tuple[str, bytes]]:
    """Objects of torch_dist: a state of each layer, and of each expert, with its number among all in the key."""
    import torch

    for module, pair in scales.items():
        match = re.match(r"decoder\.layers\.(\d+)\.(.*)", module)
        if match is None:
            continue
        at, sizes = ([match[1]], [str(layers)]) if stacked else ([], [])
        inner = f"decoder.layers.{match[2]}" if stacked else module
        expert = re.match(r"(.*\.mlp\.experts\.)(\d+)(\..*)", inner)
        if expert is not None:
            at, sizes, inner = [*at, expert[2]], [*sizes, str(experts)], f"{expert[1]}experts{expert[3]}"
        out, value = BytesIO(), extra_state([pair], tensor=tensor)
        torch.save([torch.from_numpy(value) if tensor else value], out)
        yield f"{inner}._extra_state/shard_{'.'.join(at) or '0'}_{'.'.join(sizes) or '1'}", out.getvalue()


def _as_torch(part: Mapping[str, Any], *, views: bool) -> OrderedDict[str, Any]:
    """The state dict as a module gives it; with `views` all matrices lie transposed in one storage."""
    import torch

    out: OrderedDict[str, Any] = OrderedDict()
    size = sum(value.size for value in part.values() if isinstance(value, np.ndarray))
    storage, used = torch.zeros(size), 0
    for name, value in part.items():
        if not isinstance(value, np.ndarray):
            out[name] = value
            continue
        whole = torch.from_numpy(np.ascontiguousarray(value))
        if views and whole.ndim == 2:
            place = storage[used : used + whole.numel()].view(whole.shape[1], whole.shape[0]).t()
            out[name] = place.copy_(whole)
            used += whole.numel()
        else:
            out[name] = whole
    out._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return out


def write_torch_dist(
    root: Path,
    state: State,
    args: Any,
    *,
    tp: int = 1,
    parts: int = 1,
    stacked: bool = True,
    fused: bool = True,
    singleton: bool = False,
    common_file: bool = False,
    scales: Scales | None = None,
    states_as_tensors: bool = True,
) -> Path:
    """A torch_dist checkpoint; returns its root.

    parts        files per rank
    stacked      one tensor for all layers; else per-layer keys
    fused        TransformerEngine's names for norms; else the local MLA spec's plain ones
    singleton    `singleton_local_shards`: gate and up under two keys (implies per-layer keys)
    scales       of fp8 training, by global module
    common_file  `common.pt` as megatron-core up to 0.18; else `common_state` as 0.19
    """
    folder = root / "iter_0000010"
    folder.mkdir(parents=True)
    whole: dict[str, Array] = {}
    for name, tensor in (fused_names(state) if fused else plain_names(state)).items():
        expert = re.fullmatch(r"(.*\.mlp\.experts\.)(\d+)(\..*)", name)
        if expert:
            name = f"{expert[1]}experts{expert[3]}"
            before = whole.get(name, np.zeros((0, *tensor.shape), np.float32))
            tensor = np.concatenate([before, tensor[None]])
        if singleton and name.endswith("linear_fc1.weight") and args.swiglu:
            whole[name + "_w"], whole[name + "_v"] = np.split(tensor, 2)
        else:
            whole[name] = tensor
    if stacked and not singleton:
        layers: dict[str, list[Array]] = {}
        for key in [key for key in whole if key.startswith("decoder.layers.")]:
            inner = re.sub(r"^decoder\.layers\.\d+\.", "decoder.layers.", key)
            layers.setdefault(inner, []).append(whole.pop(key))
        whole |= {key: np.stack(tensors) for key, tensors in layers.items()}

    def data_of(one: Tensor, chunk: Chunk) -> bytes:
        box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        return np.ascontiguousarray(whole[one.key][box]).tobytes()

    saving = Saving(folder, data_of, parts)
    for key, tensor in whole.items():
        axis = tensor.ndim - (1 if key.endswith(COLUMNS) else min(tensor.ndim, 2))
        cuts = tp if tensor.ndim >= 2 and tensor.shape[axis] % tp == 0 and "norm" not in key else 1
        size = tensor.shape[axis] // cuts
        chunks = tuple(
            Chunk(
                rank,
                tuple(rank * size if i == axis else 0 for i in range(tensor.ndim)),
                tuple(size if i == axis else n for i, n in enumerate(tensor.shape)),
            )
            for rank in range(cuts)
        )
        saving.save(Tensor(key, "float32", tensor.shape, chunks))
    values = simple_args(args, tensor_model_parallel_size=tp, pipeline_model_parallel_size=1)
    common = {
        "args": Instance(Name("argparse", "Namespace"), values),
        "checkpoint_version": 3.0,
        "iteration": 10,
        "content_metadata": {"singleton_local_shards": singleton},
    }
    if common_file:
        with (folder / "common.pt").open("wb") as file:
            write_archive(file, common)
    else:
        saving.save_bytes("common_state/shard_0_1", common, 0)
    states = _dist_states(
        scales or {},
        args.num_layers,
        args.num_experts or 0,
        stacked=stacked and not singleton,
        tensor=states_as_tensors,
    )
    for key, blob in states:
        saving.save_blob(key, blob, 0)
    saving.finish()
    (root / "latest_checkpointed_iteration.txt").write_text("10")
    return root
