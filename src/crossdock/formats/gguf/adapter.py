"""LoRA adapters as today's llama.cpp loads them beside a model: one GGUF file of pairs, no tokenizer, no configuration.

One alpha stands for all pairs: each is multiplied by alpha / its rank, or by nothing where alpha is 0; where pairs need
different numbers, B is multiplied by them beforehand.
Rules: llama.cpp b11549, `src/llama-adapter.cpp`. What its adapters cannot hold is said by the layout (gguf_lora.toml).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from crossdock.errors import PlanError
from crossdock.formats.gguf.container import header_bytes, read_header
from crossdock.formats.gguf.source import as_source
from crossdock.formats.gguf.vocabulary import is_gguf
from crossdock.formats.options import Options
from crossdock.formats.stored import Source
from crossdock.formats.target import Assembled, Findings, PairForm, Target, TargetFile, TensorSpec

# what llama.cpp b11549 multiplies through `build_lora_mm` or looks up with its adapter (`src/llama-graph.cpp`)
_APPLIED: Final = re.compile(
    r"(token_embd|output|blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps)?|ffn_gate_inp))\.weight\Z"
)
_ALPHA: Final = "adapter.lora.alpha"


class GgufLoraTarget(Target[Options]):
    """One GGUF file for llama.cpp's option for adapters: float32, in which adapters were trained."""

    name = "gguf-lora"
    layout = "gguf_lora"
    pairs_in = "gguf"
    one_alpha = True
    single_file = True
    options_type = Options

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """Return the command that uses the adapter."""
        return (f"llama-cli -m BASE.gguf with the adapter {output}",)

    @classmethod
    def demand_place(cls, name: str) -> None:
        """Raises PlanError for a tensor that llama.cpp uses without its adapter."""
        if not _APPLIED.match(name):
            raise PlanError("llama.cpp applies no adapter to this tensor", where=name, fix="--base MODEL --merge")

    @classmethod
    def pair_form(cls, name: str) -> PairForm:
        """An embedding is a matrix from tokens: rows of its A are looked up."""
        return PairForm.ROWS_FIRST if name == "token_embd.weight" else PairForm.LINEAR

    @classmethod
    def pair_names(cls, name: str) -> tuple[str, str]:
        """The tensor's name with .lora_a and .lora_b."""
        return f"{name}.lora_a", f"{name}.lora_b"

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """The keys of the layout, then the pairs."""
        header = found.header
        if found.alphas:
            header = {
                "general.architecture": header["general.architecture"],
                "general.type": ("STRING", "adapter"),
                "adapter.type": ("STRING", "lora"),
                _ALPHA: ("FLOAT32", next(iter(found.alphas.values()))),
            }
        metadata = [(key, kind, value) for key, (kind, value) in header.items()]
        first, offsets, total = header_bytes(metadata, [(t.name, t.shape, t.dtype) for t in tensors])
        facts = {key: value for key, _, value in metadata}
        return Assembled((TargetFile("adapter.gguf", total, first),), tuple((0, at) for at in offsets), (), facts)

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The metadata of a GGUF file."""
        return read_header(output).metadata

    @classmethod
    def reopen(cls, output: Path) -> Source | None:
        """A GGUF file that says it is a LoRA adapter."""
        header = read_header(output) if is_gguf(output) else None
        if header is None or header.metadata.get("general.type") != "adapter":
            return None
        return as_source(output, (header,), cls.name)
