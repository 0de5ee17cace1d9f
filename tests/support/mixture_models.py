"""Tiny models on which llama.cpp's mixtures differ: every family, rows of whole super-blocks and others, many layers,
and the sizes that its rules look at. Nothing here knows crossdock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.decilm_model import PLAIN, make_decilm
from support.hf_models import make_hf

# rows of 256 everywhere; 17 layers, of which an eighth and a sixteenth are no whole numbers
LLAMA: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 17,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 256, "n_layer": 17, "n_inner": 256, "n_head": 4}
FALCON: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 256, "ffn_hidden_size": 256, "num_hidden_layers": 17, "num_attention_heads": 8,
}  # fmt: skip
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4}
WIDE = {"intermediate_size": 512, "num_key_value_heads": 4}  # two super-blocks a row; fewer heads that share a KV head

# name -> recipe of tests/support/hf_models.py and what is different
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-wide": ("llama", LLAMA | WIDE | {"num_hidden_layers": 4}),
    "llama-tied": ("llama3", LLAMA | {"num_hidden_layers": 8}),
    "llama-short-rows": ("llama", {"num_hidden_layers": 9}),
    "llama-odd-rows": ("llama-unaligned", {"num_hidden_layers": 4}),
    "llama-80": ("llama", SMALL | {"num_hidden_layers": 80, "num_key_value_heads": 2}),
    "llama-80-heads": ("llama", SMALL | {"num_hidden_layers": 80, "num_key_value_heads": 4}),
    "mistral": ("mistral", LLAMA | WIDE | {"num_hidden_layers": 2}),
    "mixtral": ("mixtral", LLAMA | {"num_hidden_layers": 9, "num_local_experts": 8}),
    "mixtral-4": ("mixtral", LLAMA | {"num_hidden_layers": 9, "num_local_experts": 4}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2-80": ("qwen2", SMALL | {"num_hidden_layers": 80}),
    "qwen3": ("qwen3", LLAMA | {"num_hidden_layers": 7, "head_dim": 32}),
    "qwen3_moe": ("qwen3_moe", LLAMA | {"num_hidden_layers": 9, "head_dim": 32, "moe_intermediate_size": 256}),
    "deepseek_v3": (
        "deepseek_v3",
        LLAMA | {"num_hidden_layers": 9, "moe_intermediate_size": 256, "num_key_value_heads": 8, "head_dim": 16,
                 "n_routed_experts": 12, "q_lora_rank": 256},
    ),
    "deepseek_v2": ("deepseek_v2", {"num_hidden_layers": 5}),
    "deepseek_v3-8": ("deepseek_v3", {"num_hidden_layers": 9}),
    "nemotron": ("nemotron", LLAMA | {"head_dim": 32}),
    "starcoder": ("starcoder", GPT2),
    "starcoder2": ("starcoder2", LLAMA),
    "gpt2": ("gpt2", GPT2),
    "gpt2-short-rows": ("gpt2", {"n_layer": 8}),
    "stablelm": ("stablelm", LLAMA),
    "gpt_neox": ("gpt_neox", LLAMA),
    "gemma": ("gemma", LLAMA | {"num_hidden_layers": 9, "head_dim": 32}),
    "gemma2": ("gemma2", LLAMA | {"num_hidden_layers": 9, "head_dim": 32, "query_pre_attn_scalar": 32}),
    "falcon": ("falcon", FALCON),
    "falcon-new": ("falcon-new", FALCON | {"num_hidden_layers": 33}),
    "falcon-short-rows": ("falcon", {"num_hidden_layers": 9}),
    "falcon-head": ("falcon-one-norm", FALCON | {"num_hidden_layers": 8}),
    "deci": ("", {}),
    "deci-80": ("", {"layers": 80}),
}  # fmt: skip


def make(model: str, folder: Path) -> Path:
    """Write a model as a Hugging Face folder of random bfloat16 weights. Returns the folder."""
    recipe, sizes = MODELS[model]
    if not recipe:
        return make_decilm(folder, [PLAIN[layer % len(PLAIN)] for layer in range(sizes.get("layers", 10))])
    return make_hf(recipe, folder, **sizes)
