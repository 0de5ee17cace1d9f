"""Hugging Face folders as a target: config.json, safetensors shards with their index, tokenizer files byte for byte."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdock.errors import InputError, NotACheckpointError, UsageError
from crossdock.formats.companions import NAMES
from crossdock.formats.fp8 import hf_target as fp8
from crossdock.formats.hf.folder import settings_of, text_file, weight_files
from crossdock.formats.hf.options import HfOptions
from crossdock.formats.hf.source import open_plain, read_json
from crossdock.formats.stored import Source
from crossdock.formats.target import PLAIN, Assembled, Encoding, Findings, Target, TargetFile, TensorSpec


class HfTarget(Target[HfOptions]):
    """A folder that `transformers` and vLLM load."""

    name = "hf"
    layout = "hf"
    options_type = HfOptions
    needs_training_scales = frozenset({"fp8_static"})
    own_names = (
        "config.json",
        "model.safetensors",
        "model-?????-of-?????.safetensors",
        "model.safetensors.index.json",
        *NAMES,
    )

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        """Those of PyTorch that engines load."""
        return PLAIN

    @classmethod
    def quantizations(cls) -> tuple[str, ...]:
        """Return the names of the fp8 schemes."""
        return tuple(fp8.ALGORITHMS)

    def check(self) -> None:
        """Scales of an fp8 cache stand beside those of the weights."""
        if self.options.fp8_kv_cache and self.options.quantize is None:
            raise UsageError("--fp8-kv-cache requires fp8 weights", fix="add -q fp8, or leave --fp8-kv-cache out")

    @classmethod
    def recorded(cls, output: Source) -> Mapping[str, Any]:
        """The quantisation that the output's config.json names."""
        return fp8.recorded(output.metadata)

    @classmethod
    def reopen(cls, output: Path) -> Source | None:
        """A quantised folder as it is stored: as a source its weights are read by their scales."""
        quantization = (output / fp8.FILE).is_file()
        with contextlib.suppress(InputError):
            quantization = quantization or bool(read_json(output)[0].get("quantization_config"))
        return open_plain(output) if quantization else None

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """What serves the folder. An FP8 folder is for some engines only."""
        if not (output / fp8.FILE).is_file():
            complete = any((output / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
            return (f"vllm serve {shlex.quote(str(output))}",) if complete else ()
        quantization = read_json(output / fp8.FILE)[0].get("quantization") or {}
        return (fp8.served_by(quantization.get("quant_algo"), shlex.quote(str(output))),)

    def encoding(self, tensor: TensorSpec, found: Findings) -> Encoding:
        """The dtype asked for; as stored for "auto"; float32 for quantised sources.

        Also float32, whatever was asked for: what the layout's [encoding] lists, where the source has it so.
        """
        scaled = fp8.encoding(tensor, self.options, found)
        if scaled is not None:
            return scaled
        fixed = found.fixed.get(tensor.name)
        if fixed is not None:
            return Encoding(fixed)
        if self.options.dtype == "auto":
            if tensor.dtype in PLAIN:
                return Encoding(tensor.dtype)
            return Encoding("float32", f"{tensor.dtype} tensors are decoded to float32; --dtype chooses another")
        if tensor.dtype == "float32" and found.is_listed("f32", tensor.name):
            return Encoding("float32")
        return Encoding(self.options.dtype)

    def extra(self, tensors: Sequence[TensorSpec], found: Findings) -> Sequence[tuple[TensorSpec, bytes]]:
        """The scales of static fp8: every other tensor of a Hugging Face folder is stored by its sources."""
        return fp8.static_scales(tensors, self.options, found)

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """Shards in the order of the tensors, then the index, the configuration and the companion files."""
        weights = weight_files([[tensor] for tensor in tensors], self.options.max_shard_size)
        settings = settings_of(self.options.tokenizer, found)
        warnings, keys = settings.warnings, dict(settings.keys)
        own: tuple[TargetFile, ...] = ()
        fail_on: frozenset[str] = frozenset()
        if self.options.quantize is not None:
            warnings += fp8.warnings(tensors, self.options)
            keys["quantization_config"], content = fp8.configurations(tensors, self.options)
            own = (text_file(fp8.FILE, content),)
            fail_on = frozenset({"nonfinite"})
        files = (*weights.files, *own, *settings.files(keys))
        placed = tuple(weights.places[t.name] for t in tensors)
        return Assembled(files, placed, warnings, settings.facts(keys), fail_on)

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The keys of config.json, as they stand there. Raises NotACheckpointError for a file of the folder."""
        if output.is_file():
            raise NotACheckpointError("this is one file of a model", where=str(output), fix=f"pass {output.parent}")
        return read_json(output / "config.json")[0]
