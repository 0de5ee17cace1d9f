"""Anonymous memory of a run above an idle interpreter with the imports: at most the budget and 64 MiB."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from support.ggml_training_files import in_order, random_file, scratch_order, write

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import make_torch_dist
from torch_files import tensor, write_archive

# sampled by a thread: file pages that the kernel keeps do not count
MEASURED = """
import sys, threading, time
import numpy, ml_dtypes, xxhash
import crossdock, crossdock.running.run, crossdock.model.forward, crossdock.running.weights
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) << 10
source, output, to, dtype, quantize, memory, base = sys.argv[1:]
idle = peak = anonymous()
done = False
def sample():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=sample)
thread.start()
checkpoint = crossdock.open(source, base=base or None)
if to == "logits":
    with crossdock.running.weights.CheckpointWeights(checkpoint, int(memory)) as weights:
        crossdock.model.forward.forward(checkpoint.config, weights, range(64))
else:
    cut = {"tp": 4} if to == "trtllm" else {}
    plan = crossdock.plan(checkpoint, to, dtype=dtype, quantize=quantize or None, **cut)
    crossdock.run(plan, output, memory=int(memory), workers=2)
done = True
thread.join()
print(peak - idle)
"""
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 65536, "hidden_size": 1024,
    "intermediate_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 256, "n_embd": 2048, "n_head": 16,
    "n_layer": 1, "n_inner": 8192, "n_positions": 64, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 256, "hidden_size": 1024,
    "intermediate_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MEGATRON = {"hidden": 1024, "heads": 16, "groups": 8, "head_dim": 64, "ffn": 2048, "vocab": 32768}


def write_sparse(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A folder whose bfloat16 weights are zeros that lie on no disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return folder


def llama(folder: Path) -> Path:
    h, f = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    at = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (LLAMA["vocab_size"], h)}
    shapes |= {at + f"self_attn.{p}_proj.weight": (h, h) for p in "qkvo"}
    shapes |= {at + "mlp.gate_proj.weight": (f, h), at + "mlp.up_proj.weight": (f, h)}
    shapes |= {at + "mlp.down_proj.weight": (h, f), at + "input_layernorm.weight": (h,)}
    shapes |= {at + "post_attention_layernorm.weight": (h,), "model.norm.weight": (h,)}
    return write_sparse(folder, LLAMA, shapes)


def gpt2(folder: Path) -> Path:
    h, f = GPT2["n_embd"], GPT2["n_inner"]
    at = "transformer.h.0."
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (GPT2["vocab_size"], h),
        "transformer.wpe.weight": (GPT2["n_positions"], h),
        at + "attn.c_attn.weight": (h, 3 * h),
        at + "attn.c_attn.bias": (3 * h,),
        at + "attn.c_proj.weight": (h, h),
        at + "attn.c_proj.bias": (h,),
        at + "mlp.c_fc.weight": (h, f),
        at + "mlp.c_fc.bias": (f,),
        at + "mlp.c_proj.weight": (f, h),
        at + "mlp.c_proj.bias": (h,),
    }
    for norm in (at + "ln_1", at + "ln_2", "transformer.ln_f"):
        shapes |= {norm + ".weight": (h,), norm + ".bias": (h,)}
    return write_sparse(folder, GPT2, shapes)


def mixtral(folder: Path) -> Path:
    """Each expert is a tensor of 4 MiB; stacked, as GGUF has them, they are 32 MiB."""
    h, f, v = MIXTRAL["hidden_size"], MIXTRAL["intermediate_size"], MIXTRAL["vocab_size"]
    at = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h), "lm_head.weight": (v, h)}
    shapes |= {at + f"self_attn.{p}_proj.weight": (h, h) for p in "qkvo"}
    shapes |= {at + "block_sparse_moe.gate.weight": (MIXTRAL["num_local_experts"], h)}
    for expert in range(MIXTRAL["num_local_experts"]):
        inner = at + f"block_sparse_moe.experts.{expert}."
        shapes |= {inner + "w1.weight": (f, h), inner + "w2.weight": (h, f), inner + "w3.weight": (f, h)}
    shapes |= {at + "input_layernorm.weight": (h,), at + "post_attention_layernorm.weight": (h,)}
    return write_sparse(folder, MIXTRAL, shapes | {"model.norm.weight": (h,)})


def torch_dist(folder: Path) -> Path:
    """An embedding of 64 MiB, whole in one chunk."""
    make_torch_dist.write(folder, MEGATRON, layers=1, tp=1, pp=1, sparse=False)
    return folder


def ranks(folder: Path) -> Path:
    """The same model as rank files, tensor parallel 2: the embedding is made of two tensors of 32 MiB."""
    args = make_torch_dist.args_of(MEGATRON, 1, 2, 1)
    h, f, qkv = MEGATRON["hidden"], MEGATRON["ffn"], (16 + 2 * 8) * 64
    shapes = {
        "embedding.word_embeddings.weight": (MEGATRON["vocab"] // 2, h),
        "decoder.layers.0.input_layernorm.weight": (h,),
        "decoder.layers.0.self_attention.linear_qkv.weight": (qkv // 2, h),
        "decoder.layers.0.self_attention.linear_proj.weight": (h, h // 2),
        "decoder.layers.0.pre_mlp_layernorm.weight": (h,),
        "decoder.layers.0.mlp.linear_fc1.weight": (f, h),
        "decoder.layers.0.mlp.linear_fc2.weight": (h, f // 2),
        "decoder.final_layernorm.weight": (h,),
        "output_layer.weight": (MEGATRON["vocab"] // 2, h),
    }
    state = {name: tensor("bfloat16", shape, str(n)) for n, (name, shape) in enumerate(shapes.items())}
    for rank in range(2):
        file = folder / "iter_0000010" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        with file.open("wb") as out:
            saved = {"args": args, "checkpoint_version": 3.0, "iteration": 10, "model": state}
            write_archive(out, saved, [bytes(2 * math.prod(shape)) for shape in shapes.values()])
    (folder / "latest_checkpointed_iteration.txt").write_text("10")
    return folder


def legacy(path: Path, kind: str, version: str, optimizer: str) -> Path:
    """An old training checkpoint of llama.cpp; each vector of the optimizer is 20 MiB or more, the embedding 8."""
    sizes = {"n_vocab": 8192, "n_embd": 256, "n_head": 4, "n_rot": 64, "n_layer": 1, "n_ff": 1024}
    made = random_file(np.random.default_rng(0), kind, version, optimizer, **sizes)
    if version == "0":
        made = in_order(made, scratch_order(made))
    path.write_bytes(write(made))
    return path


def peak(source: Path, output: Path, to: str, dtype: str, quantize: str, budget: int, base: str = "") -> int:
    words = [str(source), str(output), to, dtype, quantize, str(budget << 20), base]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("make", "to", "dtype", "quantize", "budget"),
    [
        (llama, "gguf", "float16", "", 8),
        (llama, "gguf", "auto", "q8_0", 32),
        (llama, "gguf", "auto", "q4_k_m", 16),
        (llama, "hf", "float32", "", 8),
        (llama, "hf", "auto", "fp8", 8),
        (gpt2, "hf", "auto", "fp8", 8),
        (gpt2, "gguf", "float16", "", 8),
        (gpt2, "gguf", "auto", "q4_0", 64),
        (llama, "trtllm", "float16", "", 8),
        (gpt2, "trtllm", "bfloat16", "", 8),
        (mixtral, "gguf", "float16", "", 8),
        (torch_dist, "hf", "float32", "", 8),
        (torch_dist, "gguf", "auto", "q8_0", 16),
        (ranks, "gguf", "float16", "", 8),
        (ranks, "hf", "float32", "", 8),
    ],
)
def test_peak(make: Any, to: str, dtype: str, quantize: str, budget: int, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    got = peak(source, tmp_path / "out", to, dtype, quantize, budget)
    assert got <= (budget + 64) << 20, f"{got / 2**20:.0f} MiB"


@pytest.mark.parametrize("make", [llama, gpt2])
def test_logits(make: Any, tmp_path: Path) -> None:
    """The head of the one is 268 MB as float32, the widest matrix of the other 151 MB, and it lies transposed."""
    got = peak(make(tmp_path / "source"), tmp_path / "out", "logits", "", "", 8)
    assert got <= (8 + 64) << 20, f"{got / 2**20:.0f} MiB"


@pytest.mark.parametrize("make", [llama, gpt2])
def test_fp8_back_to_float32(make: Any, tmp_path: Path) -> None:
    peak(make(tmp_path / "source"), tmp_path / "small", "hf", "auto", "fp8", 64)
    got = peak(tmp_path / "small", tmp_path / "out", "hf", "float32", "", 8)
    assert got <= (8 + 64) << 20, f"{got / 2**20:.0f} MiB"


def test_gguf_back_to_float32(tmp_path: Path) -> None:
    source = llama(tmp_path / "source")
    peak(source, tmp_path / "small.gguf", "gguf", "auto", "q8_0", 64)
    got = peak(tmp_path / "small.gguf", tmp_path / "out", "hf", "float32", "", 8)
    assert got <= (8 + 64) << 20, f"{got / 2**20:.0f} MiB"


@pytest.mark.parametrize(
    ("version", "optimizer", "to"),
    [("0", "adam", "gguf-checkpoint"), ("1", "lbfgs", "gguf-checkpoint"), ("0", "adam", "gguf"), ("", "adam", "hf")],
)
def test_old_training_checkpoints(version: str, optimizer: str, to: str, tmp_path: Path) -> None:
    """Also when the moments are rearranged, and the optimizer's copy of the parameters is compared with them."""
    source = legacy(tmp_path / "source", "ggcp", version, optimizer)
    got = peak(source, tmp_path / "out", to, "auto", "", 4)
    assert got <= (4 + 64) << 20, f"{got / 2**20:.0f} MiB"


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_a_merged_adapter(to: str, tmp_path: Path) -> None:
    crossdock.export(legacy(tmp_path / "model", "ggcp", "", "adam"), tmp_path / "base.gguf", "gguf")
    adapter = legacy(tmp_path / "adapter", "ggcl", "1", "adam")
    got = peak(adapter, tmp_path / "out", to, "auto", "", 4, str(tmp_path / "base.gguf"))
    assert got <= (4 + 64) << 20, f"{got / 2**20:.0f} MiB"
