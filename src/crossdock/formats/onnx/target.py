"""ONNX as a target: a Hugging Face folder in float32 or float16, and in it a graph that points into its weights.

The same folder runs in transformers, ONNX Runtime and onnxruntime-genai; beside the weights it has half a megabyte.
Facts: onnx 1.23 (external data), ONNX Runtime 1.32, which reads external data of the graph's own folder alone.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdock.errors import EnvironmentProblem, NotACheckpointError, Problem
from crossdock.formats.companions import NAMES
from crossdock.formats.hf.folder import settings_of, text_file, weight_files
from crossdock.formats.hf.source import read_json
from crossdock.formats.onnx import genai
from crossdock.formats.onnx.fields import demand_expressible
from crossdock.formats.onnx.options import OnnxOptions
from crossdock.formats.stored import Source
from crossdock.formats.target import Assembled, Encoding, Findings, Ranks, Target, TensorSpec
from crossdock.model.config import ModelConfig

GRAPH = "model.onnx"
PLAIN = ("float32", "float16")
LIMIT = "max_shard_size"
INSTALL = 'pip install "crossdock[onnx]"'


class OnnxTarget(Target[OnnxOptions]):
    """A folder that ONNX Runtime and onnxruntime-genai load, and transformers besides."""

    name = "onnx"
    layout = "hf"
    options_type = OnnxOptions
    own_names = (
        "config.json",
        "model.safetensors",
        "model-?????-of-?????.safetensors",
        "model.safetensors.index.json",
        GRAPH,
        genai.FILE,
        *NAMES,
    )

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        """Those that ONNX Runtime computes with on every device; on the CPU it lacks bfloat16."""
        return PLAIN

    def check(self) -> None:
        """The graph is written with the package `onnx`."""
        if not installed():
            raise EnvironmentProblem("the Python package onnx is needed and not installed", fix=INSTALL)

    def ranks(self, config: ModelConfig) -> Ranks:
        """None; what the graph cannot express is refused before anything is planned."""
        demand_expressible(config)
        return Ranks()

    def encoding(self, tensor: TensorSpec, found: Findings) -> Encoding:
        """The dtype asked for; for "auto" as stored, and float32 for what ONNX Runtime does not compute with."""
        fixed = found.fixed.get(tensor.name)
        if fixed is not None:
            return Encoding(fixed)
        if self.options.dtype == "auto":
            if tensor.dtype in PLAIN:
                return Encoding(tensor.dtype)
            what = f"{tensor.dtype} tensors become float32, since ONNX Runtime has no {tensor.dtype} on the CPU"
            return Encoding("float32", f"{what}; --dtype float16 takes half of it")
        if tensor.dtype == "float32" and found.is_listed("f32", tensor.name):
            return Encoding("float32")
        return Encoding(self.options.dtype)

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """The files of a Hugging Face folder, then the graph and what onnxruntime-genai reads."""
        from crossdock.formats.onnx.layers.forward import write_graph
        from crossdock.formats.onnx.weights import Home, regions, stacks

        placed = found.placed()
        weights = weight_files(_grouped(tensors, stacks(placed)), self.options.max_shard_size)
        settings = settings_of(self.options.tokenizer, found)
        dtypes = {tensor.name: tensor.dtype for tensor in tensors}
        homes = {
            name: Home(weights.files[number].name, offset, dtypes[name])
            for name, (number, offset) in weights.places.items()
        }
        ops, notes = self.options.ops, {LIMIT: str(self.options.max_shard_size)}
        written = write_graph(found.config, regions(placed, homes), _main_dtype(tensors), ops, notes)
        files = [*weights.files, *settings.files(settings.keys), text_file(GRAPH, written.content)]
        warnings = settings.warnings
        caches = () if written.states else written.caches
        genai_config = genai.config_bytes(settings.ends, caches, self.options.ops)
        if genai_config is not None:
            files.append(text_file(genai.FILE, genai_config))
        else:
            warnings += (f"no {genai.FILE}: onnxruntime-genai wants keys and values of one size in all layers",)
        places = tuple(weights.places[tensor.name] for tensor in tensors)
        return Assembled(tuple(files), places, warnings, settings.facts(settings.keys))

    @classmethod
    def recorded(cls, output: Source) -> Mapping[str, Any]:
        """The options that the graph's metadata names."""
        named = {"ops": output.notes.get("operators"), LIMIT: output.notes.get("largest shard")}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def differences(cls, name: str, wanted: bytes, found: bytes, where: str) -> Sequence[Problem] | None:
        """Of graphs, node by node."""
        if name != GRAPH:
            return None
        from crossdock.formats.onnx.reading import differences

        return differences(wanted, found, where)

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The keys of config.json, as they stand there. Raises NotACheckpointError for a file of the folder."""
        if output.is_file():
            raise NotACheckpointError("this is one file of a model", where=str(output), fix=f"pass {output.parent}")
        return read_json(output / "config.json")[0]

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """How the graph is held against the source."""
        words = ("crossdock", "verify", str(output), "--against", *source, "--logits", "1,2,3,4", "--logits-engine")
        return (f"{shlex.join(words)} onnxruntime",)


def installed() -> bool:
    """Whether the package `onnx` can be imported."""
    return importlib.util.find_spec("onnx") is not None


def _main_dtype(tensors: Sequence[TensorSpec]) -> str:
    """What the graph computes in: float16 where a matrix is float16."""
    return "float16" if any(t.dtype == "float16" and len(t.shape) > 1 for t in tensors) else "float32"


def _grouped(tensors: Sequence[TensorSpec], stacks: Mapping[str, tuple[str, int | None]]) -> list[list[TensorSpec]]:
    """Tensors one by one; those of a stack of experts, which the graph reads as one, together."""
    groups: list[list[TensorSpec]] = []
    before: object = None
    for tensor in tensors:
        key = stacks.get(tensor.name)
        if key is not None and key == before:
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
        before = key
    return groups
