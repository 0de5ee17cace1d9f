"""LoRA adapters as today's llama.cpp loads them beside a model: one GGUF file of pairs, no tokenizer, no configuration.

Rules: llama.cpp b11549, `src/llama-adapter.cpp`. What its adapters cannot hold is said by the layout (gguf_lora.toml).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.formats.gguf.container import header_bytes, read_header
from crossdock.formats.gguf.source import as_source
from crossdock.formats.gguf.target import GgufTarget
from crossdock.formats.gguf.vocabulary import is_gguf
from crossdock.formats.stored import Source
from crossdock.formats.target import Assembled, Encoding, Request, TargetFile, TensorSpec, adapter_encoding
from crossdock.layout.rules import Layout
from crossdock.model.config import ModelConfig


@dataclass(frozen=True)
class GgufLoraTarget(GgufTarget):
    """One GGUF file for llama.cpp's option for adapters."""

    name: str = "gguf-lora"
    layout: str = "gguf_lora"

    def next_steps(self, output: Path, source: Sequence[str]) -> Sequence[str]:
        """How it is used."""
        return (f"llama-cli -m BASE.gguf with the adapter {output}",)

    def encoding(self, tensor: TensorSpec, request: Request, rules: Layout) -> Encoding:
        """float32, in which adapters were trained."""
        return adapter_encoding(request)

    def assemble(
        self,
        tensors: Sequence[TensorSpec],
        config: ModelConfig,
        written: Mapping[str, tuple[str, Any]],
        request: Request,
    ) -> Assembled:
        """The keys of the layout, then the pairs."""
        metadata = [(key, kind, value) for key, (kind, value) in written.items()]
        header, offsets, total = header_bytes(metadata, [(t.name, t.shape, t.dtype) for t in tensors])
        facts = {key: value for key, _, value in metadata}
        return Assembled((TargetFile("adapter.gguf", total, header),), tuple((0, at) for at in offsets), (), facts)

    def reopen(self, output: Path) -> Source | None:
        """A GGUF file that says it is a LoRA adapter."""
        header = read_header(output) if is_gguf(output) else None
        if header is None or header.metadata.get("general.type") != "adapter":
            return None
        return as_source(output, (header,), self.name)
