"""genai_config.json: what onnxruntime-genai must know of a model beside its graph.

It names caches by one number for all layers, and has one width and one number of heads for them; a model whose layers
differ runs in ONNX Runtime, and not there. Facts: onnxruntime-genai 0.18 (src/config.cpp, src/models/model_type.h).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crossdock.model.config import ModelConfig

FILE = "genai_config.json"


def config_bytes(config: ModelConfig, caches: Sequence[tuple[int, int, int]], ops: str) -> bytes | None:
    """The file, None where caches differ from each other or there are none.

    caches  of each, its heads and the widths of a head's keys and values
    """
    if len(set(caches)) != 1 or caches[0][1] != caches[0][2]:
        return None
    heads, width, _ = caches[0]
    decoder: dict[str, Any] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": width,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": len(caches),
        "num_key_value_heads": heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    known = [number for number in ends if number is not None]
    ids: Mapping[str, Any] = {
        "bos_token_id": config.bos_token_id if config.bos_token_id is not None else (known or [0])[0],
        "eos_token_id": known if len(known) > 1 else (known or [config.vocab_size])[0],
        "pad_token_id": config.pad_token_id if config.pad_token_id is not None else (known or [0])[0],
    }
    model = {"type": "decoder", "vocab_size": config.vocab_size, "context_length": config.max_position_embeddings,
             **ids, "decoder": decoder}  # fmt: skip
    search = {"max_length": config.max_position_embeddings, "do_sample": False, "num_beams": 1,
              "past_present_share_buffer": ops == "gqa"}  # fmt: skip
    return json.dumps({"model": model, "search": search}, indent=2).encode() + b"\n"
