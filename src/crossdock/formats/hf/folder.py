"""The files of a Hugging Face folder: shards of safetensors with their index, configuration, companion files.

Targets compose them: Hugging Face's own, and those that put something of their own beside the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.formats.companions import GENERATION, IDS, companion_files_for
from crossdock.formats.hf.config import config_json, generation_config_json
from crossdock.formats.safetensors import header_bytes
from crossdock.formats.target import Findings, TargetFile, TensorSpec
from crossdock.model.config import ModelConfig
from crossdock.tokenizers.gguf_metadata import ends_of

if TYPE_CHECKING:  # most outputs of the tests have none
    from crossdock.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Weights:
    """files: the shards, then their index; places: tensor -> (index of its file, byte where its data starts)."""

    files: tuple[TargetFile, ...]
    places: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Settings:
    """What lies beside the weights.

    config  the canonical configuration, with the special ids that are known; keys: those of config.json
    ends    the same with every token that ends a generation
    """

    config: ModelConfig
    ends: ModelConfig
    keys: Mapping[str, Any]
    companions: tuple[TargetFile, ...]
    warnings: tuple[str, ...]

    def files(self, keys: Mapping[str, Any]) -> tuple[TargetFile, ...]:
        """config.json with `keys`, generation_config.json where the source brings none, the companion files."""
        own = [text_file("config.json", config_json(keys))]
        if not any(file.name == GENERATION for file in self.companions):
            own.append(text_file(GENERATION, generation_config_json(self.ends)))
        return (*own, *self.companions)

    def facts(self, keys: Mapping[str, Any]) -> Mapping[str, Any]:
        """What config.json says, without special ids that it does not know."""
        found = json.loads(config_json(keys))
        return {key: value for key, value in found.items() if key not in IDS or value is not None}


def weight_files(groups: Sequence[Sequence[TensorSpec]], limit: int) -> Weights:
    """Shards of at most `limit` bytes, unless one group is larger. Tensors of a group lie in one file, in order."""
    shards = _shards(groups, limit)
    files: list[TargetFile] = []
    places: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        header, offsets, total = header_bytes([(t.name, t.dtype, t.shape) for t in shard], {"format": "pt"})
        files.append(TargetFile(name, total, header))
        places |= {tensor.name: (number, offset) for tensor, offset in zip(shard, offsets, strict=True)}
    if len(shards) > 1:
        total_size = sum(_size(tensor) for shard in shards for tensor in shard)
        weight_map = {name: files[number].name for name, (number, _) in places.items()}
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        files.append(text_file("model.safetensors.index.json", json.dumps(index, indent=2).encode() + b"\n"))
    return Weights(tuple(files), places)


def settings_of(tokenizer: Path | None, found: Findings) -> Settings:
    """Configuration and companion files. tokenizer: where the option names one."""
    companions = companion_files_for(tokenizer, found)
    config, beyond = _within(_with_special_ids(found.config, companions.tokenizer))
    ids = {name: getattr(config, name) for name in IDS if name in found.header}
    keys = {key: value for key, (_, value) in found.header.items()} | ids
    ends = _with_all_ends(config, companions.tokenizer)
    return Settings(config, ends, keys, tuple(companions.files), (*companions.warnings, *beyond))


def text_file(name: str, content: bytes) -> TargetFile:
    """A small file that the plan holds whole."""
    return TargetFile(name, len(content), content)


def _size(tensor: TensorSpec) -> int:
    return encoded_size(codecs.get(tensor.dtype), math.prod(tensor.shape))


def _shards(groups: Sequence[Sequence[TensorSpec]], limit: int) -> list[list[TensorSpec]]:
    """Consecutive groups of at most `limit` bytes together; a larger group has a shard of its own."""
    shards: list[list[TensorSpec]] = [[]]
    held = 0
    for group in groups:
        size = sum(map(_size, group))
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1] += group
        held += size
    return shards


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
    """The configuration without special ids beyond the embedding's rows, and a sentence for each.

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
