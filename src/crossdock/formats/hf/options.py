"""What can be asked of a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.formats.options import CacheOptions, NextnOptions, TokenizerOptions
from crossdock.options import option, size


@dataclass(frozen=True, kw_only=True)
class FolderOptions(TokenizerOptions):
    """max_shard_size: bytes of a safetensors file at most, unless one tensor is larger."""

    max_shard_size: int = option("5GB", size, "Largest safetensors file.", "SIZE")


@dataclass(frozen=True, kw_only=True)
class HfOptions(FolderOptions, NextnOptions, CacheOptions):
    """What can be asked of a folder for transformers and vLLM."""
