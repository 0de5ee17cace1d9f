"""A Hugging Face llama folder of any size, written with numpy alone; and what an output consists of."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

HIDDEN, FFN, VOCAB, LAYERS, HEADS, KV_HEADS = 128, 352, 1000, 3, 4, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
EMBEDDING = "model.embed_tokens.weight"


def tensors(seed: int = 1, dtype: Any = ml_dtypes.bfloat16) -> dict[str, Any]:
    """Random weights under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (HIDDEN,),
            at + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            at + "self_attn.k_proj.weight": (kv, HIDDEN),
            at + "self_attn.v_proj.weight": (kv, HIDDEN),
            at + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            at + "post_attention_layernorm.weight": (HIDDEN,),
            at + "mlp.gate_proj.weight": (FFN, HIDDEN),
            at + "mlp.up_proj.weight": (FFN, HIDDEN),
            at + "mlp.down_proj.weight": (HIDDEN, FFN),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_safetensors(path: Path, arrays: Mapping[str, Any]) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))


def write_llama(folder: Path, arrays: Mapping[str, Any] | None = None, **changed: Any) -> Path:
    """The folder: config.json and one model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changed))
    write_safetensors(folder / "model.safetensors", tensors() if arrays is None else arrays)
    return folder


def contents(output: Path) -> dict[str, str]:
    """Every file of an output and its manifest → SHA-256."""
    files = [f for f in output.rglob("*") if f.is_file()] if output.is_dir() else [output]
    files.append(output.with_name(output.name + ".manifest.json"))
    return {str(f.relative_to(output.parent)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
