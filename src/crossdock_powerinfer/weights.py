"""What a neuron weighs in a PowerInfer model, and what of a VRAM budget is left for neurons: from the GGUF's header.

PowerInfer's own estimate uses the FFN width where the hidden size belongs; here each layer's tensors are asked.
Facts from PowerInfer at d3ebd7c (llama.cpp: what it loads before any neuron, and its budget arithmetic).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from crossdock.errors import ConfigError, PlanError, Problem, UsageError
from crossdock.formats.gguf.container import GgufFile, GgufTensor, read_split

BUCKET: Final = 4  # bytes of a selected neuron's entry in gpu_bucket
GRAIN: Final = 256  # rows that the kernels for quantised weights visit together
FFN: Final = re.compile(r"blk\.(\d{1,5})\.(ffn_gate|ffn_up|ffn_down_t)\.weight")
# what is on the GPU before any neuron
FIRST: Final = re.compile(r"blk\.\d+\.(attn_.*|fc[12]\..*|ffn_norm.*)|output.*")


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Bytes of a model, as far as the choice needs them.

    widths   per layer: n_ff
    neurons  per layer: bytes of one neuron (gate, up and down rows in their own types, and its bucket entry)
    grain    rows that PowerInfer's kernels for these types visit together: a layer's neurons are a multiple of it
    first    bytes of attention, predictors, norms and output, which go to the GPU before any neuron
    kv       bytes of the KV cache for one token of context
    """

    path: Path
    widths: tuple[int, ...]
    neurons: tuple[int, ...]
    grain: int
    first: int
    kv: int

    def left(self, budget: int, ctx: int) -> int:
        """Bytes for neurons out of a budget. Raises UsageError when there are none."""
        left = budget - self.first - self.kv * ctx
        if left <= 0:
            raise UsageError(
                "the VRAM budget is smaller than what the GPU needs before any neuron",
                where=str(self.path),
                expected=f"more than {self.first + self.kv * ctx:,} bytes: {self.first:,} for attention, predictors, "
                f"norms and output, {self.kv * ctx:,} for the KV cache of {ctx:,} tokens",
                got=f"{budget:,}",
                fix="a larger --vram-budget or a smaller --ctx",
            )
        return left


def read_weights(path: Path) -> ModelWeights:
    """Read a model's header. Raises FormatError, ConfigError (keys), PlanError (not a PowerInfer model)."""
    files = read_split(path)
    tensors = [tensor for file in files for tensor in file.tensors]
    layers: dict[int, dict[str, GgufTensor]] = {}
    for tensor in tensors:
        if match := FFN.fullmatch(tensor.name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if not layers or sorted(layers) != list(range(len(layers))):
        raise PlanError(
            "no FFN tensors as PowerInfer has them",
            where=str(path),
            expected="blk.0.ffn_up.weight, blk.0.ffn_down_t.weight, ...",
            fix="convert the model with PowerInfer's convert.py, which also transposes ffn_down",
        )
    problems, widths, neurons = [], [], []
    for number, parts in sorted(layers.items()):
        width = parts["ffn_up"].shape[0] if "ffn_up" in parts and parts["ffn_up"].shape else 0
        if not width or "ffn_down_t" not in parts or any(part.shape[:1] != (width,) for part in parts.values()):
            got = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
            problems.append(
                Problem("ffn_up, ffn_down_t (and ffn_gate) do not belong together", f"layer {number}", got=got)
            )
            continue
        widths.append(width)
        neurons.append(sum(part.nbytes // width for part in parts.values()) + BUCKET)
    if problems:
        raise PlanError(problems[:20])
    first = sum(tensor.nbytes for tensor in tensors if FIRST.fullmatch(tensor.name))
    types = {part.codec for parts in layers.values() for part in parts.values()}
    grain = 32 if types <= {"float16", "float32"} else GRAIN
    return ModelWeights(path, tuple(widths), tuple(neurons), grain, first, _kv(files[0], len(layers)))


def _kv(file: GgufFile, layers: int) -> int:
    """2 (K and V) x n_embd_gqa x layers x 2 bytes (float16)."""
    arch = file.metadata.get("general.architecture")
    keys = [f"{arch}.{key}" for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")]
    values = [file.metadata.get(key) for key in keys]
    if values[2] is None:
        values[2] = values[1]
    problems = [
        Problem(f"{key} is not a number above 0", str(file.path), got=repr(value)[:80])
        for key, value in zip(keys, values, strict=True)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]
    if problems:
        raise ConfigError(problems)
    hidden_size, heads, kv_heads = (int(value) for value in values if value is not None)
    return prod((2, hidden_size // heads * kv_heads, layers, 2))
