"""Small models by transformers and adapters on them by peft, both with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = [[1, 5, 9, 3, 2, 27, 11, 6]]
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 30, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1,
           "norm_topk_prob": True}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 32, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES | {"attention_bias": True}),
    "tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "qwen3_moe": ("qwen3_moe", SIZES | EXPERTS),
    "gpt2": ("gpt2", GPT2),
}


def made_model(folder: Path, kind: str, sizes: dict[str, Any]) -> Path:
    """A model of transformers in `folder`: float32, weights around 0.25."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    for one in model.parameters():
        torch.nn.init.normal_(one, std=0.25)
    model.save_pretrained(folder)
    return folder


def adapted(base: Path, output: Path, *, seed: int = 1, touch: bool = True, **options: Any) -> Path:
    """An adapter of peft on `base` at `output`, all that it trains being random."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(r=3, **options))
    if touch:
        for name, one in model.named_parameters():
            if one.requires_grad:
                torch.nn.init.normal_(one, std=0.3)
                if "magnitude" in name:
                    one.data.abs_().add_(0.5)
    model.save_pretrained(output)
    return output


def edited(adapter: Path, **keys: Any) -> Path:
    """The same folder with other keys in its adapter_config.json."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return adapter


def logits_of(model: Path, adapter: Path | None = None) -> np.ndarray:  # type: ignore[type-arg]
    """Logits computed in float64 of a folder's float32 weights, an adapter merged into them by peft in float32."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    one = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        one = peft.PeftModel.from_pretrained(one, adapter).merge_and_unload()
    one.config._experts_implementation = "eager"  # the grouped one has no float64
    with torch.no_grad():
        found: np.ndarray = one.double().eval()(torch.tensor(TOKENS)).logits[0].numpy()  # type: ignore[type-arg]
    return found
