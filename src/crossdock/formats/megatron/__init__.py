"""Megatron checkpoints as sources: torch_dist, fsdp_dtensor, torch_dcp, per-rank files. Headers only, never data."""

from __future__ import annotations

from pathlib import Path

from crossdock.formats.megatron.dist import open_dist
from crossdock.formats.megatron.ranks import open_ranks
from crossdock.formats.megatron.root import find_folder, looks_like_megatron
from crossdock.formats.stored import Source

__all__ = ["open_source", "sniff"]


def sniff(path: Path) -> bool:
    """True for a Megatron checkpoint root or the folder of one iteration. Never raises."""
    return looks_like_megatron(path)


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open a Megatron checkpoint: the root, or the folder of one iteration.

    The source's format is "megatron" (torch_dist: whole tensors) or "megatron_rank" (tensors of rank files; parts
    are named "tp0.pp0.vpp0" and, for experts, "etp0.ep0.pp0.vpp0").
    Raises NotACheckpointError, UsageError, FormatError, UnsafePickleError, ConfigError.
    """
    folder = find_folder(path, iteration)
    return open_ranks(path, folder) if folder.kind == "ranks" else open_dist(path, folder)
