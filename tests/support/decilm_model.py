"""A tiny Nemotron of architecture search (DeciLM) as a Hugging Face folder, and its logits.

transformers has no class for it without remote code: the forward here is put together from transformers' own Llama
layers, with each block as `block_configs` says. Nothing here knows crossdock.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
HEADS, HIDDEN, VOCAB = 4, 64, 203
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}  # fmt: skip


def block(kv_heads: int | None, width: int | None, *, linear: str = "") -> dict[str, Any]:
    """One of `block_configs`. None leaves attention or the MLP out; `linear` names those replaced by a matrix."""
    attention, ffn = "attention" in linear, "ffn" in linear
    return {
        "attention": {
            "n_heads_in_group": HEADS // kv_heads if kv_heads else None,
            "no_op": not kv_heads and not attention,
            "replace_with_linear": attention,
            "num_sink_tokens": None,
            "sparsify": None,
            "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False,
            "window_length": None,
        },
        "ffn": {
            "ffn_mult": 1.5 * width / HIDDEN if width else None,
            "no_op": not width and not ffn,
            "replace_with_linear": ffn,
            "sparsify": None,
        },
    }


# everything that llama.cpp knows, and with matrices in place of MLPs and MLPs left out
PLAIN = [block(2, 256), block(None, 512), block(None, 256, linear="attention"), block(None, None), block(4, 512)]
ALL = [*PLAIN, block(1, None), block(2, None, linear="ffn"), block(None, None, linear="attention ffn")]


def make_decilm(folder: Path, blocks: list[dict[str, Any]], *, scaled: bool = True, dtype: str = "bfloat16") -> Path:
    """Write a random model; values are exact in bfloat16. `scaled`: with Llama 3.1's rope scaling."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN),
    }  # fmt: skip
    for layer, each in enumerate(blocks):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _shapes(each).items()}
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        noise = 1 + 0.2 * noise if name.endswith("norm.weight") else 0.1 * noise
        state[name] = noise.bfloat16().to(getattr(torch, dtype))
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "attention_bias": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"}, "block_configs": blocks,
        "bos_token_id": 1, "eos_token_id": [2, 3], "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": None, "max_position_embeddings": 96, "mlp_bias": False, "num_attention_heads": HEADS,
        "num_hidden_layers": len(blocks), "num_key_value_heads": None, "rms_norm_eps": 1e-5,
        "rope_scaling": ROPE if scaled else None,
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": dtype, "vocab_size": VOCAB,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _shapes(each: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    attention, ffn = each["attention"], each["ffn"]
    shapes: dict[str, tuple[int, ...]] = {}
    if not attention["no_op"]:
        shapes["input_layernorm.weight"] = (HIDDEN,)
    if attention["replace_with_linear"]:
        shapes["self_attn.linear_attn.weight"] = (HIDDEN, HIDDEN)
    elif not attention["no_op"]:
        kv = HIDDEN // attention["n_heads_in_group"]
        shapes |= {f"self_attn.{x}_proj.weight": (kv if x in "kv" else HIDDEN, HIDDEN) for x in "qkvo"}
    if not ffn["no_op"]:
        shapes["post_attention_layernorm.weight"] = (HIDDEN,)
    if ffn["replace_with_linear"]:
        shapes["mlp.linear_mlp.weight"] = (HIDDEN, HIDDEN)
    elif not ffn["no_op"]:
        width = round(ffn["ffn_mult"] * HIDDEN / 1.5)
        shapes |= {f"mlp.{x}_proj.weight": (width, HIDDEN) for x in ("gate", "up")}
        shapes["mlp.down_proj.weight"] = (HIDDEN, width)
    return shapes


def decilm_logits(folder: Path, tokens: NDArray[np.integer[Any]]) -> Array:
    """float32 logits [batch, n, vocabulary] for `tokens` [batch, n]; every tensor of the folder is used."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as llama

    config = json.loads((folder / "config.json").read_text())
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    ids = torch.from_numpy(np.atleast_2d(tokens).astype(np.int64))
    count = ids.shape[1]
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]

    def own(prefix: str) -> dict[str, Any]:
        names = [name for name in state if name.startswith(prefix)]
        return {name.removeprefix(prefix): state.pop(name) for name in names}

    def settings(**more: Any) -> Any:
        rope = {"rope_type": "default", **(config["rope_scaling"] or {}), "rope_theta": config["rope_theta"]}
        made = LlamaConfig(
            hidden_size=config["hidden_size"], num_attention_heads=config["num_attention_heads"],
            rms_norm_eps=config["rms_norm_eps"], max_position_embeddings=config["max_position_embeddings"],
            rope_parameters=rope, **more,
        )  # fmt: skip
        made._attn_implementation = "eager"
        return made

    def normed(x: Any, name: str) -> Any:
        module = llama.LlamaRMSNorm(config["hidden_size"], config["rms_norm_eps"])
        module.load_state_dict(own(name + "."))
        return module(x)

    with torch.no_grad():
        x = own("model.embed_tokens.")["weight"][ids]
        turn = llama.LlamaRotaryEmbedding(settings())(x, torch.arange(count)[None])
        for layer, each in enumerate(config["block_configs"]):
            prefix, attention, ffn = f"model.layers.{layer}.", each["attention"], each["ffn"]
            if attention["replace_with_linear"]:
                x = x + normed(x, prefix + "input_layernorm") @ own(prefix + "self_attn.linear_attn.")["weight"].T
            elif not attention["no_op"]:
                kv = config["num_attention_heads"] // attention["n_heads_in_group"]
                module: Any = llama.LlamaAttention(settings(num_key_value_heads=kv), layer)
                module.load_state_dict(own(prefix + "self_attn."))
                x = x + module(normed(x, prefix + "input_layernorm"), turn, mask)[0]
            if ffn["replace_with_linear"]:
                y = normed(x, prefix + "post_attention_layernorm")
                x = x + y @ own(prefix + "mlp.linear_mlp.")["weight"].T
            elif not ffn["no_op"]:
                own_state = own(prefix + "mlp.")
                module = llama.LlamaMLP(settings(intermediate_size=own_state["gate_proj.weight"].shape[0]))
                module.load_state_dict(own_state)
                x = x + module(normed(x, prefix + "post_attention_layernorm"))
        logits = normed(x, "model.norm") @ own("lm_head.")["weight"].T
    assert not state, f"left over: {sorted(state)}"
    return np.asarray(logits.numpy(), np.float32)
