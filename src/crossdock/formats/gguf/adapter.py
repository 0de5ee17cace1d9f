"""LoRA adapters as today's llama.cpp loads them beside a model: one GGUF file of pairs, no tokenizer, no configuration.

Rules: llama.cpp b11549, `src/llama-adapter.cpp`. What its adapters cannot hold is said by the layout (gguf_lora.toml).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdock.formats.gguf.container import header_bytes, read_header
from crossdock.formats.gguf.source import as_source
from crossdock.formats.gguf.vocabulary import is_gguf
from crossdock.formats.options import Options
from crossdock.formats.stored import Source
from crossdock.formats.target import Assembled, Findings, Target, TargetFile, TensorSpec


class GgufLoraTarget(Target[Options]):
    """One GGUF file for llama.cpp's option for adapters: float32, in which adapters were trained."""

    name = "gguf-lora"
    layout = "gguf_lora"
    single_file = True
    options_type = Options

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """Return the command that uses the adapter."""
        return (f"llama-cli -m BASE.gguf with the adapter {output}",)

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """The keys of the layout, then the pairs."""
        metadata = [(key, kind, value) for key, (kind, value) in found.header.items()]
        header, offsets, total = header_bytes(metadata, [(t.name, t.shape, t.dtype) for t in tensors])
        facts = {key: value for key, _, value in metadata}
        return Assembled((TargetFile("adapter.gguf", total, header),), tuple((0, at) for at in offsets), (), facts)

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
