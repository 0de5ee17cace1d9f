"""Hugging Face folders as a source: config.json with safetensors or pytorch_model*.bin, whole or in shards.

Headers only; `.bin` files go through the safe pickle machine. Facts: transformers 5.23 `modeling_utils.py`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError, NotACheckpointError, Problem
from crossdock.formats.companions import found_in
from crossdock.formats.fp8 import hf_target as fp8
from crossdock.formats.fp8.hf_source import with_scales
from crossdock.formats.hf.config import LARGEST, flattened, parse
from crossdock.formats.stored import Source, SourceFile, StoredTensor
from crossdock.formats.weight_file import tensors_in
from crossdock.io.files import read_exact, reading, size_of

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = "adapter_config.json"
_SHARD = re.compile(r"(?:model|pytorch_model)-(\d+)-of-(\d+)\.(?:safetensors|bin)\Z")


def sniff(path: Path) -> bool:
    """A folder with config.json or a weight file, or such a weight file itself. Adapters are refused by name."""
    try:
        if path.is_dir():
            return any((path / name).is_file() for name in ("config.json", _ADAPTER, *_INDEXES, *_WHOLE))
        return path.suffix == ".safetensors" and path.is_file()
    except OSError:
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open a folder, or a single weight file with the config.json beside it. FP8 weights are read by their scales.

    Raises NotACheckpointError, FormatError (all that is missing or broken), ConfigError, UnsafePickleError.
    """
    return with_scales(open_plain(path))


def open_plain(path: Path) -> Source:
    """The same with every tensor as it is stored, scales too, and `quantization_config` in the metadata.

    Raises NotACheckpointError, FormatError (all that is missing or broken), ConfigError, UnsafePickleError.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / _ADAPTER).is_file():
        raise NotACheckpointError(
            "this is an adapter, not a model",
            where=str(folder),
            fix="merge it into its base model first, and give the merged folder",
            check="adapter-unmerged",
        )
    if path.is_file() and (name := _SHARD.match(path.name)) and int(name[2]) > 1:
        raise NotACheckpointError(
            "this is one of several shards of a model", where=str(path), fix=f"give the folder: {folder}"
        )
    # weights alone are a source too: `--config` may say what they are
    metadata, where = read_config(folder) if (folder / "config.json").is_file() else ({}, "")
    if not metadata.get("quantization_config") and (folder / fp8.FILE).is_file():
        quantization = read_json(folder / fp8.FILE)[0].get("quantization")
        if isinstance(quantization, dict):
            metadata = {**metadata, "quantization_config": {**quantization, "quant_method": "modelopt"}}
    files, index, total = ([path], None, None) if path.is_file() else _weight_files(folder)
    notes = {"files": str(len(files))}
    tensors: dict[tuple[str, str], StoredTensor] = {}
    home: dict[str, Path] = {}
    broken: set[str] = set()
    problems: list[Problem] = []
    for number, file in enumerate(files):
        try:
            for tensor in tensors_in(file, number):
                if tensor.name in home:
                    problems.append(
                        Problem(f"is in two files: {home[tensor.name].name} and {file.name}", where=tensor.name)
                    )
                home[tensor.name] = file
                tensors["", tensor.name] = tensor
        except FormatError as error:
            problems += error.problems
            broken.add(file.name)
    if index is not None:
        problems += _index_problems(index, home, broken, folder)
    if problems:
        raise FormatError(problems)
    stored = sum(extent.nbytes for tensor in tensors.values() for extent in tensor.extents)
    if total is not None and total != stored:
        notes["total_size of the index"] = f"{str(total)[:40]}; the tensors have {stored} bytes"
    return Source(
        format="hf",
        root=path,
        files=tuple(SourceFile.of(file) for file in files),
        tensors=tensors,
        metadata=metadata,
        metadata_at=where,
        companion_files=tuple(found_in(folder)),
        notes=notes,
    )


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The flat keys of a config.json, or of the one in a folder, and where it was read."""
    found, where = read_json(path)
    return flattened(found, where), where


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """A configuration's JSON as it is, or that of the config.json in a folder, and where it was read."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise NotACheckpointError(
            "there is no config.json", where=str(file), fix="give the model's folder, or its config.json with --config"
        )
    with reading(file) as fd:
        data = read_exact(fd, 0, min(size_of(fd), LARGEST + 1), str(file))
    return parse(data, str(file)), str(file)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None, Any]:
    """Weight files in order, and where there is an index its tensor → file map and what it says of their size."""
    for name in _INDEXES:
        index = folder / name
        if not index.is_file():
            continue
        with reading(index) as fd:
            found = parse(read_exact(fd, 0, min(size_of(fd), LARGEST + 1), str(index)), str(index))
        weight_map = found.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise FormatError("weight_map is not a map of tensors to files", where=str(index))
        names = sorted(set(weight_map.values()))
        outside = [n for n in names if Path(n).name != n]
        if outside:
            raise FormatError("the index names files outside the folder", where=str(index), got=", ".join(outside[:5]))
        missing = [n for n in names if not os.path.isfile(folder / n)]  # False for a name that no disk takes
        if missing:
            raise FormatError(
                f"the index names {len(missing)} files that are not there",
                where=str(index),
                expected=", ".join(missing[:8]),
                cause="an unfinished download or copy",
                fix="fetch the files again, or the whole folder",
                check="half-checkpoint",
            )
        total = found.get("metadata", {}).get("total_size") if isinstance(found.get("metadata"), dict) else None
        return [folder / n for n in names], weight_map, total
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name], None, None
    shards = sorted(f for f in folder.iterdir() if _SHARD.match(f.name))
    if not shards:
        raise NotACheckpointError(
            "there are no weights in this folder", where=str(folder),
            expected=" or ".join((*_INDEXES, *_WHOLE)),
            got=", ".join(sorted(f.name for f in folder.iterdir())[:8]) or "nothing",
        )  # fmt: skip
    counts = {int(m[2]) for f in shards if (m := _SHARD.match(f.name))}
    if len(counts) != 1 or len(shards) != counts.pop():
        raise FormatError("shards are missing and there is no index", where=str(folder),
                          got=", ".join(f.name for f in shards[:8]), fix="fetch what is missing",
                          check="half-checkpoint")  # fmt: skip
    return shards, None, None


def _index_problems(index: dict[str, str], home: dict[str, Path], broken: set[str], folder: Path) -> list[Problem]:
    """Where index and shards disagree; of broken shards nothing is known."""
    where = str(folder)
    lost = [n for n, file in index.items() if file not in broken and (n not in home or home[n].name != file)]
    extra = [n for n in home if n not in index]
    fix = "fetch the files that the index was made for, or remove the index if the files are right"
    sentences = [f"the index places {n} in {index[n]}, which lacks it" for n in lost[:8]]
    sentences += [f"{n} in {home[n].name} is not in the index" for n in extra[:8]]
    problems = [Problem(what, where=where, fix=fix, check="index-stale") for what in sentences]
    more = len(lost) + len(extra) - len(problems)
    if more:
        problems.append(Problem(f"and {more} more tensors on which index and files disagree", where=where))
    return problems
