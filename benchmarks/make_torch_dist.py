"""Writes a synthetic Megatron torch_dist checkpoint, without Megatron and without torch.

    python benchmarks/make_torch_dist.py OUT [--gib 1.4] [--tp 2] [--pp 2]
    python benchmarks/make_torch_dist.py OUT --chunks 100000

The first form is a Llama-like dense model (hidden 1536, vocabulary 32,000) with random bfloat16 weights, as
megatron-core 0.19 saves it: stacked layers, one `.distcp` per rank, args inside `common_state`. The second
is a `.metadata` with at least that many chunks (Qwen3-30B-A3B shapes with its optimizer) over sparse data
files: for `inspect` and `plan`, which read no tensor data.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_dist import Chunk, Saving, Tensor
from torch_files import Instance, Name

ITERATION = 1000
DENSE: dict[str, Any] = {
    "hidden": 1536,
    "heads": 16,
    "groups": 8,
    "head_dim": 96,
    "ffn": 4096,
    "vocab": 32000,
}
MOE: dict[str, Any] = {
    "hidden": 2048,
    "heads": 32,
    "groups": 4,
    "head_dim": 128,
    "ffn": 6144,
    "vocab": 151936,
    "experts": 128,
    "expert_ffn": 768,
}


def stacked(key: str, shape: tuple[int, ...], cut: int | None, layers: int, tp: int, pp: int) -> Tensor:
    """A per-layer tensor with the layer as first axis; `cut` is the axis of `shape` that tensor parallelism
    splits."""
    chunks = []
    for layer in range(layers):
        stage = layer * pp // layers
        for rank in range(tp if cut is not None else 1):
            offsets, sizes = [0] * len(shape), list(shape)
            if cut is not None:
                sizes[cut] //= tp
                offsets[cut] = rank * sizes[cut]
            chunks.append(Chunk(stage * tp + rank, (layer, *offsets), (1, *sizes)))
    return Tensor(f"decoder.layers.{key}", "bfloat16", (layers, *shape), tuple(chunks))


def vocabulary(key: str, model: dict[str, Any], stage: int, tp: int) -> Tensor:
    """An embedding, its rows split over tensor parallel ranks."""
    rows = model["vocab"] // tp
    chunks = tuple(Chunk(stage * tp + t, (t * rows, 0), (rows, model["hidden"])) for t in range(tp))
    return Tensor(key, "bfloat16", (model["vocab"], model["hidden"]), chunks)


def experts(key: str, shape: tuple[int, ...], cut: int, model: dict[str, Any], layers: int, tp: int) -> Tensor:
    """[layer, expert, ...]: every expert is its own chunk, again cut over tensor parallel ranks."""
    chunks = []
    for layer in range(layers):
        for expert in range(model["experts"]):
            for rank in range(tp):
                offsets, sizes = [0, 0], list(shape)
                sizes[cut] //= tp
                offsets[cut] = rank * sizes[cut]
                chunks.append(Chunk(rank, (layer, expert, *offsets), (1, 1, *sizes)))
    return Tensor(f"decoder.layers.{key}", "bfloat16", (layers, model["experts"], *shape), tuple(chunks))


def model_tensors(model: dict[str, Any], layers: int, tp: int, pp: int) -> list[Tensor]:
    """All weights of the model in torch_dist names, with their chunks."""
    h, d, heads, groups, ffn = (model[k] for k in ("hidden", "head_dim", "heads", "groups", "ffn"))
    qkv = (heads + 2 * groups) * d

    def layer(key: str, shape: tuple[int, ...], cut: int | None = None) -> Tensor:
        return stacked(key, shape, cut, layers, tp, pp)

    tensors = [
        vocabulary("embedding.word_embeddings.weight", model, 0, tp),
        vocabulary("output_layer.weight", model, pp - 1, tp),
        Tensor("decoder.final_layernorm.weight", "bfloat16", (h,), (Chunk((pp - 1) * tp, (0,), (h,)),)),
        layer("self_attention.linear_qkv.layer_norm_weight", (h,)),
        layer("self_attention.linear_qkv.weight", (qkv, h), 0),
        layer("self_attention.linear_proj.weight", (h, heads * d), 1),
    ]
    if "experts" not in model:
        gate = layer("mlp.linear_fc1.weight", (ffn, h), 0)
        up = tuple(Chunk(c.rank, (c.offsets[0], c.offsets[1] + ffn, 0), c.sizes) for c in gate.chunks)
        fc1 = Tensor(gate.key, "bfloat16", (layers, 2 * ffn, h), gate.chunks + up)
        return [
            *tensors,
            layer("mlp.linear_fc1.layer_norm_weight", (h,)),
            fc1,
            layer("mlp.linear_fc2.weight", (h, ffn), 1),
        ]
    f = model["expert_ffn"]
    return [
        *tensors,
        layer("self_attention.q_layernorm.weight", (d,)),
        layer("self_attention.k_layernorm.weight", (d,)),
        layer("pre_mlp_layernorm.weight", (h,)),
        layer("mlp.router.weight", (model["experts"], h)),
        experts("mlp.experts.experts.linear_fc1.weight", (2 * f, h), 0, model, layers, tp),
        experts("mlp.experts.experts.linear_fc2.weight", (h, f), 1, model, layers, tp),
    ]


def optimizer_tensors(tensors: list[Tensor]) -> Iterator[Tensor]:
    """The Adam state that lies beside the weights."""
    for kind in ("exp_avg", "exp_avg_sq", "fp32_param"):
        for one in tensors:
            yield Tensor(f"optimizer.state.{kind}.{one.key}", "float32", one.shape, one.chunks)


def args_of(model: dict[str, Any], layers: int, tp: int, pp: int) -> Instance:
    """The argparse.Namespace that Megatron-LM saves, as far as a reader needs it."""
    moe = "experts" in model
    values: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": model["hidden"],
        "ffn_hidden_size": model["ffn"],
        "num_attention_heads": model["heads"],
        "kv_channels": model["head_dim"],
        "group_query_attention": True,
        "num_query_groups": model["groups"],
        "max_position_embeddings": 2048,
        "seq_length": 2048,
        "position_embedding_type": "rope",
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False,
        "rope_scaling_factor": 8.0,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-06 if moe else 1e-05,
        "apply_layernorm_1p": False,
        "swiglu": True,
        "squared_relu": False,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": moe,
        "untie_embeddings_and_output_weights": True,
        "multi_latent_attention": False,
        "vocab_size": model["vocab"],
        "padded_vocab_size": model["vocab"],
        "make_vocab_size_divisible_by": 128,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": tp,
        "context_parallel_size": 1,
        "transformer_impl": "local",
        "ckpt_format": "torch_dist",
        "fp16": False,
        "bf16": True,
        "params_dtype": Name("torch", "bfloat16"),
        "iteration": ITERATION,
        "num_experts": model.get("experts"),
        "mtp_num_layers": None,
    }
    if moe:
        values |= {
            "moe_router_topk": min(8, model["experts"]),
            "moe_ffn_hidden_size": model["expert_ffn"],
            "moe_shared_expert_intermediate_size": None,
            "moe_router_score_function": "softmax",
            "moe_router_enable_expert_bias": False,
            "moe_router_pre_softmax": False,
            "moe_router_topk_scaling_factor": None,
            "moe_layer_freq": 1,
            "moe_grouped_gemm": True,
            "moe_router_num_groups": None,
            "moe_router_group_topk": None,
        }
    return Instance(Name("argparse", "Namespace"), values)


def random_bfloat16(rng: np.random.Generator, count: int, norm: bool) -> NDArray[np.uint16]:
    """Bits of random bfloat16: weights of size 2**-7..2**-6 with random signs, norms in 1..1.5. Fast, no
    conversion."""
    bits = np.frombuffer(rng.bytes(2 * count), np.uint16)
    if norm:
        return (bits & np.uint16(0x003F)) | np.uint16(0x3F80)
    return (bits & np.uint16(0x807F)) | np.uint16(0x3C00)


def write(out: Path, model: dict[str, Any], layers: int, tp: int, pp: int, *, sparse: bool) -> int:
    """Write the whole checkpoint root; returns the number of tensor chunks."""
    rng = np.random.default_rng(100)

    def data_of(one: Tensor, chunk: Chunk) -> bytes:
        return random_bfloat16(rng, math.prod(chunk.sizes), norm="norm" in one.key).tobytes()

    folder = out / f"iter_{ITERATION:07d}"
    folder.mkdir(parents=True)
    saving = Saving(folder, None if sparse else data_of)
    tensors = model_tensors(model, layers, tp, pp)
    for one in [*tensors, *optimizer_tensors(tensors)] if sparse else tensors:
        saving.save(one)
    for layer in range(layers):
        key = f"decoder.layers.self_attention.linear_qkv._extra_state/shard_{layer}_{layers}"
        saving.save_bytes(key, None, (layer * pp // layers) * tp)
    common = {
        "args": args_of(model, layers, tp, pp),
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "num_floating_point_operations_so_far": 0,
    }
    saving.save_bytes("common_state/shard_0_1", common, 0)
    chunks = saving.finish()
    (out / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    return chunks


def main() -> None:
    """Parse the command line, choose the number of layers, write, say what was written."""
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gib", type=float, default=1.4, help="at least so many GiB of weights")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=2)
    parser.add_argument("--chunks", type=int, help="at least so many chunks over sparse files instead")
    given = parser.parse_args()
    model, pp = (MOE, 1) if given.chunks else (DENSE, given.pp)

    def size(layers: int) -> float:
        tensors = model_tensors(model, layers, given.tp, pp)
        if given.chunks:
            return 4 * sum(len(one.chunks) for one in tensors)
        return sum(math.prod(one.shape) for one in tensors) * 2 / 2**30

    layers = pp
    while size(layers) < (given.chunks or given.gib):
        layers += pp
    sparse = given.chunks is not None
    chunks = write(given.out, model, layers, given.tp, pp, sparse=sparse)
    print(f"{given.out}: {layers} layers, {chunks} chunks")


if __name__ == "__main__":
    main()
