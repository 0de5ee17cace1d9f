"""Anonymous memory of a run above an idle interpreter with the imports: at most the budget and 64 MiB."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# sampled by a thread: file pages that the kernel keeps do not count
MEASURED = """
import sys, threading, time
import numpy, ml_dtypes, xxhash
import crossdock, crossdock.running.run
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) << 10
source, output, to, dtype, quantize, memory = sys.argv[1:]
idle = peak = anonymous()
done = False
def sample():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)
thread = threading.Thread(target=sample)
thread.start()
tp = 4 if to == "trtllm" else 1
plan = crossdock.plan(crossdock.open(source), to, dtype=dtype, quantize=quantize or None, tp=tp)
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
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 256, "n_embd": 3072, "n_head": 16,
    "n_layer": 1, "n_inner": 12288, "n_positions": 64, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def write_sparse(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A folder whose bfloat16 weights are zeros that lie on no disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, size = end, 2
        for n in shape:
            size *= n
        end = begin + size
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


def peak(source: Path, output: Path, to: str, dtype: str, quantize: str, budget: int) -> int:
    words = [str(source), str(output), to, dtype, quantize, str(budget << 20)]
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
        (llama, "hf", "float32", "", 8),
        (gpt2, "gguf", "float16", "", 8),
        (gpt2, "gguf", "auto", "q4_0", 64),
        (llama, "trtllm", "float16", "", 8),
        (gpt2, "trtllm", "bfloat16", "", 8),
    ],
)
def test_peak(make: Any, to: str, dtype: str, quantize: str, budget: int, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    got = peak(source, tmp_path / "out", to, dtype, quantize, budget)
    assert got <= (budget + 64) << 20, f"{got / 2**20:.0f} MiB"


def test_gguf_back_to_float32(tmp_path: Path) -> None:
    source = llama(tmp_path / "source")
    peak(source, tmp_path / "small.gguf", "gguf", "auto", "q8_0", 64)
    got = peak(tmp_path / "small.gguf", tmp_path / "out", "hf", "float32", "", 8)
    assert got <= (8 + 64) << 20, f"{got / 2**20:.0f} MiB"
