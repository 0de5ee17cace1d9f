"""Hugging Face folders as a target: config.json, safetensors shards with their index, tokenizer files byte for byte."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.errors import InputError, NotACheckpointError, UsageError
from crossdock.formats.companions import GENERATION, IDS, NAMES, companion_files_for
from crossdock.formats.fp8 import hf_target as fp8
from crossdock.formats.hf.config import config_json, generation_config_json
from crossdock.formats.hf.options import HfOptions
from crossdock.formats.hf.source import open_plain, read_json
from crossdock.formats.safetensors import header_bytes
from crossdock.formats.stored import Source
from crossdock.formats.target import PLAIN, Assembled, Encoding, Findings, Target, TargetFile, TensorSpec
from crossdock.model.config import ModelConfig
from crossdock.tokenizers.gguf_metadata import ends_of

if TYPE_CHECKING:  # most outputs of the tests have none
    from crossdock.tokenizers.tokenizer import Tokenizer


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
        shards = _shards(tensors, self.options.max_shard_size)
        files: list[TargetFile] = []
        places: dict[str, tuple[int, int]] = {}
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
            header, offsets, total = header_bytes([(t.name, t.dtype, t.shape) for t in shard], {"format": "pt"})
            files.append(TargetFile(name, total, header))
            for tensor, offset in zip(shard, offsets, strict=True):
                places[tensor.name] = (number, offset)
                weight_map[tensor.name] = name
        if len(shards) > 1:
            total_size = sum(map(_size, tensors))
            index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
            files.append(_text("model.safetensors.index.json", json.dumps(index, indent=2).encode() + b"\n"))
        companion_files = companion_files_for(self.options.tokenizer, found)
        warnings = companion_files.warnings
        config, beyond = _within(_with_special_ids(found.config, companion_files.tokenizer))
        warnings += beyond
        ids = {name: getattr(config, name) for name in IDS if name in found.header}
        keys = {key: value for key, (_, value) in found.header.items()} | ids
        fail_on: frozenset[str] = frozenset()
        if self.options.quantize is not None:
            warnings += fp8.warnings(tensors, self.options)
            keys["quantization_config"], content = fp8.configurations(tensors, self.options)
            files.append(_text(fp8.FILE, content))
            fail_on = frozenset({"nonfinite"})
        config_bytes = config_json(keys)
        files.append(_text("config.json", config_bytes))
        if not any(file.name == GENERATION for file in companion_files.files):
            files.append(_text(GENERATION, generation_config_json(_with_all_ends(config, companion_files.tokenizer))))
        files += companion_files.files
        placed = tuple(places[t.name] for t in tensors)
        facts = {key: value for key, value in json.loads(config_bytes).items() if key not in IDS or value is not None}
        return Assembled(tuple(files), placed, warnings, facts, fail_on)

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The keys of config.json, as they stand there. Raises NotACheckpointError for a file of the folder."""
        if output.is_file():
            raise NotACheckpointError("this is one file of a model", where=str(output), fix=f"pass {output.parent}")
        return read_json(output / "config.json")[0]


def _size(tensor: TensorSpec) -> int:
    return encoded_size(codecs.get(tensor.dtype), math.prod(tensor.shape))


def _shards(tensors: Sequence[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    """Consecutive tensors of at most `limit` bytes together; a larger tensor has a shard of its own."""
    shards: list[list[TensorSpec]] = [[]]
    held = 0
    for tensor in tensors:
        size = _size(tensor)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += size
    return shards


def _text(name: str, content: bytes) -> TargetFile:
    return TargetFile(name, len(content), content)


def _with_special_ids(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """Special ids from the tokenizer where the checkpoint, like Megatron's, has none; and all that end a generation
    where they come from a GGUF file, whose configuration names one of them alone."""
    if tokenizer is None:
        return config

    ends, known = ends_of(tokenizer), any(getattr(config, name) is not None for name in IDS)
    if known and tokenizer.sources:  # read from files: its model's own configuration says it all
        return config
    own = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    ends = tuple(dict.fromkeys((*(number for number in own if number is not None), *ends)))
    return replace(
        config,
        bos_token_id=tokenizer.special.get("bos") if config.bos_token_id is None else config.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
        pad_token_id=tokenizer.special.get("pad") if config.pad_token_id is None else config.pad_token_id,
    )


def _with_all_ends(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """Also the ends that the tokenizer names: of a folder without generation_config.json."""
    if tokenizer is None:
        return config
    own = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    named = (number for number in (*own, *tokenizer.end_tokens) if number is not None and number < config.vocab_size)
    ends = tuple(dict.fromkeys(named))
    return replace(config, eos_token_id=ends if len(ends) > 1 else next(iter(ends), None))


def _within(config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration without special ids that are no row of the embedding, and a sentence for each.

    transformers 5.23 warns of such an id ("must be `None` or an integer within the vocabulary") and cannot build the
    embedding with such a pad_token_id.
    """
    kept: dict[str, Any] = {}
    sentences = []
    for name in IDS:
        value = getattr(config, name)
        listed = value if isinstance(value, tuple) else () if value is None else (value,)
        inside = tuple(number for number in listed if 0 <= number < config.vocab_size)
        sentences += [
            f"{name} {number} is left out: the embedding has {config.vocab_size} rows"
            for number in listed if number not in inside
        ]  # fmt: skip
        if inside != listed:
            kept[name] = inside if len(inside) > 1 else next(iter(inside), None)
    return replace(config, **kept), tuple(sentences)
