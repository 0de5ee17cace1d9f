"""GPT-2 stores its matrices the other way round: little memory must not mean that everything is read over and over."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from llama_files import write_safetensors

import crossdock

HIDDEN, FFN, VOCAB = 256, 1024, 300
CONFIG: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCAB, "n_embd": HIDDEN, "n_head": 4,
    "n_layer": 1, "n_inner": FFN, "n_positions": 64, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def weights(seed: int) -> dict[str, Any]:
    at = "transformer.h.0."
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, HIDDEN),
        "transformer.wpe.weight": (64, HIDDEN),
        at + "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
        at + "attn.c_attn.bias": (3 * HIDDEN,),
        at + "attn.c_proj.weight": (HIDDEN, HIDDEN),
        at + "attn.c_proj.bias": (HIDDEN,),
        at + "mlp.c_fc.weight": (HIDDEN, FFN),
        at + "mlp.c_fc.bias": (FFN,),
        at + "mlp.c_proj.weight": (FFN, HIDDEN),
        at + "mlp.c_proj.bias": (HIDDEN,),
    }
    for norm in (at + "ln_1", at + "ln_2", "transformer.ln_f"):
        shapes |= {norm + ".weight": (HIDDEN,), norm + ".bias": (HIDDEN,)}
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("memory", [384 << 10, 600 << 10, 4 << 20])
def test_little_memory_reads_little_more_than_the_model(
    dtype: str, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = weights(3)
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(source / "model.safetensors", stored)
    plan = crossdock.plan(crossdock.open(source), "gguf", dtype=dtype)
    real, read = os.preadv, []

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        read.append(real(fd, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    crossdock.run(plan, tmp_path / "out.gguf", memory=memory, workers=1)
    whole = sum(array.nbytes for array in stored.values())
    assert whole <= sum(read) <= 4 * whole
    data = (tmp_path / "out.gguf").read_bytes()
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    for tensor in plan.tensors:
        if len(tensor.shape) == 2 and tensor.sources != ("transformer.wpe.weight",):
            (name,) = tensor.sources
            wanted = stored[name] if name.endswith("wte.weight") else stored[name].T
            got = np.frombuffer(data, kind, wanted.size, tensor.offset).reshape(wanted.shape)
            assert np.array_equal(got, wanted.astype(kind)), tensor.name
