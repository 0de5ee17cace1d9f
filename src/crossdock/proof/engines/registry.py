"""Which engines can be asked for logits: what each reads, the package it needs, and how near it can come.

An engine is a script that runs in a process of its own, without crossdock. On standard input it gets one JSON object
{"model": path, "windows": [[token ids], ...], "out": folder} and writes `out/0.npy`, `out/1.npy`, ...: float32
[tokens, vocab_size] for each window on its own, from position 0. Any exit code but 0 is a failure, and the end of its
standard error says why. Third parties register an `Engine` under the entry point group `crossdock.logits_engines`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.errors import EnvironmentProblem, UsageError
from crossdock.plugins import registered

ACTIVATIONS = "q8_0"  # what engines that round activations round them to where weights are blocks
HERE = Path(__file__).parent
OTHER_VERSION = 3  # exit code of a script for a package whose version it does not know


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine.

    script    the child script; packages: what it imports; extra: of crossdock, that brings them
    reads     glob of the file (in the folder, if OUT is one) that it opens; format: crossdock's name for it, or None
    rounds    it rounds activations to the type of the weights they meet, so plain float16 costs more than its weights
    close     activation function -> largest difference of a logit between this engine and float32, for float32 weights,
              as a share of the largest logit; "" for all others
    """

    name: str
    script: Path
    packages: tuple[str, ...]
    extra: str
    reads: str
    format: str | None
    rounds: bool = False
    close: Mapping[str, float] = field(default_factory=lambda: {"": 1e-4})

    @property
    def command(self) -> str:
        """The pip command that brings what is missing."""
        return f'pip install "crossdock[{self.extra}]"' if self.extra else f"pip install {' '.join(self.packages)}"

    def opens(self, output: Path) -> bool:
        """Whether `output` holds the file that this engine reads."""
        return any(output.glob(self.reads)) if output.is_dir() else output.match(self.reads)

    def rounded_to(self, stored: Iterable[str]) -> set[str]:
        """The types that this engine rounds activations to, for weights of the types `stored`."""
        if not self.rounds:
            return set()
        return {ACTIVATIONS if codecs.get(name).block > 1 else name for name in stored if name != "float32"}

    @property
    def installed(self) -> bool:
        """Whether every package that it needs is there."""
        return all(importlib.util.find_spec(name) is not None for name in self.packages)

    def needed(self) -> None:
        """Raises EnvironmentProblem when a package is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise EnvironmentProblem(f"{self.name} is not installed: {', '.join(missing)}", fix=self.command)


def _engines() -> Mapping[str, Engine]:
    # ggml looks GELU up in a float16 table and squares relu in float16 (ggml-cpu/vec.h); silu is computed
    llama = {"silu": 1e-4, "relu": 1e-4, "": 5e-3}
    own = (
        Engine("llama.cpp", HERE / "llama_cpp.py", ("xllamacpp",), "llama", "*.gguf", "gguf", True, llama),
        Engine("transformers", HERE / "hf_transformers.py", ("torch", "transformers"), "transformers", "config.json",
               "hf"),
        Engine("onnxruntime", HERE / "onnx_runtime.py", ("onnxruntime",), "onnx", "*.onnx", None, True),
        Engine("onnxruntime-genai", HERE / "onnx_genai.py", ("onnxruntime_genai",), "onnx", "genai_config.json", None,
               True),
    )  # fmt: skip
    return {engine.name: engine for engine in own}


def names() -> tuple[str, ...]:
    """Engines that can be asked."""
    return (*_engines(), *_plugins())


def engine(name: str) -> Engine:
    """The engine called `name`. Raises UsageError that lists the known ones."""
    own = _engines()
    if name in own:
        return own[name]
    if name in _plugins():
        found: Engine = _plugins()[name].load()
        return found
    raise UsageError(f"unknown engine {name!r}", expected=", ".join(names()))


@functools.cache
def _plugins() -> Mapping[str, Any]:
    return {entry.name: entry for entry in registered("crossdock.logits_engines")}
