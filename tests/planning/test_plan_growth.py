"""How CPU time and memory of a plan grow with the number of tensors: as the tensors, not as their square."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import crossdock.delivery as delivery

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32,
    "moe_intermediate_size": 16, "num_experts_per_tok": 2, "vocab_size": 64, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


def folder(path: Path, experts: int) -> Path:
    """A Hugging Face folder of a model with so many experts, over a sparse file."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (64, 32), "lm_head.weight": (64, 32), "model.norm.weight": (32,),
    }  # fmt: skip
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}.weight": (32,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{name}_norm.weight": (8,) for name in "qk"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (rows, 32) for name, rows in (("q", 32), ("k", 16), ("v", 16))}
        shapes |= {f"{at}.self_attn.o_proj.weight": (32, 32), f"{at}.mlp.gate.weight": (experts, 32)}
        for expert in range(experts):
            one = f"{at}.mlp.experts.{expert}"
            shapes |= {f"{one}.{name}_proj.weight": (16, 32) for name in ("gate", "up")}
            shapes[f"{one}.down_proj.weight"] = (32, 16)
    header, start = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    (path / "config.json").write_text(json.dumps({**CONFIG, "num_experts": experts}))
    return path


def cost(path: Path) -> tuple[float, int]:
    """CPU seconds and peak bytes of opening a folder and planning it as another one."""
    begin = time.process_time()
    plan = delivery.plan(delivery.open(path), "hf")
    seconds = time.process_time() - begin
    del plan
    tracemalloc.start()
    delivery.plan(delivery.open(path), "hf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak


def test_eight_times_the_experts_take_about_eight_times_the_time_and_memory(tmp_path: Path) -> None:
    small, large = folder(tmp_path / "small", 32), folder(tmp_path / "large", 256)
    cost(small)  # what is imported and cached once
    (seconds, peak), (more_seconds, more_peak) = cost(small), cost(large)
    assert more_seconds < 20 * seconds
    assert more_peak < 12 * peak
    assert more_peak < 6000 * 3 * 4 * 256  # bytes a tensor


def test_the_collector_of_garbage_is_on_behind_a_plan(tmp_path: Path) -> None:
    delivery.plan(delivery.open(folder(tmp_path / "one", 2)), "hf")
    assert gc.isenabled()
