"""Samples for the tests of PowerInfer: torch.save'd statistics and the smallest model that has FFN tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdock.formats.gguf.container import header_bytes

DATA = Path(__file__).parents[1] / "data" / "powerinfer"
CASES: list[dict[str, Any]] = json.loads((DATA / "cases.json").read_text())
TIES = "ties"


def save(folder: Path, layers: Sequence[Any]) -> Path:
    """A folder of statistics as PowerInfer's users have it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, counts in enumerate(layers):
        tensor = counts if isinstance(counts, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(counts))
        torch.save(tensor, folder / f"activation_{number}.pt")
    return folder


def model(path: Path, types: Sequence[tuple[str, str, str]], hidden_size: int, width: int) -> int:
    """A PowerInfer GGUF of zeros with (gate, up, down_t) types per layer; returns what the GPU holds first."""
    tensors: list[tuple[str, tuple[int, ...], str]] = [("token_embd.weight", (64, hidden_size), "float32")]
    for layer, (gate, up, down) in enumerate(types):
        tensors += [
            (f"blk.{layer}.attn_q.weight", (hidden_size, hidden_size), "float16"),
            (f"blk.{layer}.ffn_norm.weight", (hidden_size,), "float32"),
            (f"blk.{layer}.fc1.weight", (32, hidden_size), "float16"),
            (f"blk.{layer}.ffn_gate.weight", (width, hidden_size), gate),
            (f"blk.{layer}.ffn_up.weight", (width, hidden_size), up),
            (f"blk.{layer}.ffn_down_t.weight", (width, hidden_size), down),
        ]
    tensors += [("output_norm.weight", (hidden_size,), "float32"), ("output.weight", (64, hidden_size), "float16")]
    metadata = [
        ("general.architecture", "STRING", "llama"),
        ("llama.embedding_length", "UINT32", hidden_size),
        ("llama.attention.head_count", "UINT32", 4),
        ("llama.attention.head_count_kv", "UINT32", 2),
    ]
    header, _, size = header_bytes(metadata, tensors)
    path.write_bytes(header.ljust(size, b"\0"))
    layer_bytes = 2 * hidden_size * hidden_size + 4 * hidden_size + 2 * 32 * hidden_size
    return len(types) * layer_bytes + 4 * hidden_size + 2 * 64 * hidden_size
