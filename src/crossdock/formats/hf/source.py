"""Hugging Face folders as a source: config.json with safetensors or pytorch_model*.bin, whole or in shards.

Headers only; `.bin` files go through the safe pickle machine. Facts: transformers 5.23 `modeling_utils.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.errors import CrossdockError, FormatError, NotACheckpointError, Problem
from crossdock.formats.companions import found_in
from crossdock.formats.fp8 import hf_target as fp8
from crossdock.formats.fp8.hf_source import with_scales
from crossdock.formats.hf.composite import sentence, text_tensors
from crossdock.formats.hf.config import flattened
from crossdock.formats.hf.files import KINDS, SHARD, Chosen, weight_files
from crossdock.formats.hf.quantised import refuse_quantised
from crossdock.formats.stored import Source, SourceFile, StoredTensor
from crossdock.formats.weight_file import is_weight, tensors_in, training_state
from crossdock.io.json import CONFIGURATION, read_object

_ADAPTER = "adapter_config.json"


def sniff(path: Path) -> bool:
    """A folder with config.json or a weight file, or such a weight file itself. Adapters are refused by name."""
    try:
        if path.is_dir():
            return any(
                (path / name).is_file()
                for name in ("config.json", _ADAPTER, *(name for kind in KINDS for name in kind))
            )
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
            fix="--base MODEL --merge, without --format",
            check="adapter-unmerged",
        )
    if path.is_file() and (name := SHARD.match(path.name)) and int(name[3]) > 1:
        raise NotACheckpointError(
            "this is one of several shards of a model", where=str(path), fix=f"pass the folder: {folder}"
        )
    # weights alone are a source too: `--config` may say what they are
    metadata, where = read_config(folder) if (folder / "config.json").is_file() else ({}, "")
    if not metadata.get("quantization_config") and (folder / fp8.FILE).is_file():
        quantization = read_json(folder / fp8.FILE)[0].get("quantization")
        if isinstance(quantization, dict):
            metadata = {**metadata, "quantization_config": {**quantization, "quant_method": "modelopt"}}
    chosen = Chosen((path,)) if path.is_file() else weight_files(folder)
    files = chosen.files
    notes = {"files": str(len(files))} | step_of(folder)
    skipped: list[str] = []
    tensors: dict[tuple[str, str], StoredTensor] = {}
    home: dict[str, Path] = {}
    broken: set[str] = set()
    problems: list[Problem] = []
    for number, file in enumerate(files):
        try:
            for tensor in tensors_in(file, number):
                if not is_weight(tensor.name):
                    skipped.append(tensor.name)
                    continue
                if tensor.name in home:
                    problems.append(
                        Problem(f"is in two files: {home[tensor.name].name} and {file.name}", where=tensor.name)
                    )
                home[tensor.name] = file
                tensors["", tensor.name] = tensor
        except FormatError as error:
            problems += error.problems
            broken.add(file.name)
    if chosen.index is not None:
        problems += _index_problems(chosen.index, home, broken, folder)
    if problems:
        raise FormatError(problems)
    if not tensors:
        raise FormatError("no model weights found", where=str(path))
    if not metadata.get("quantization_config"):
        refuse_quantised(home, str(path))
    stored = sum(extent.nbytes for tensor in tensors.values() for extent in tensor.extents)
    if chosen.total is not None and chosen.total != stored:
        notes["total_size of the index"] = f"{str(chosen.total)[:40]}; the tensors have {stored} bytes"
    text, towers, left = text_tensors(tensors)
    aside = chosen.aside
    listed = ", ".join(aside[:5]) + (f" and {len(aside) - 5} more" if len(aside) > 5 else "")
    return Source(
        format="hf",
        root=path,
        files=tuple(SourceFile.of(file) for file in files),
        tensors=text,
        metadata=metadata,
        metadata_at=where,
        companion_files=tuple(found_in(folder)),
        skipped={**training_state(skipped), **towers},
        skipped_bytes=left,
        notes=notes,
        notices=(
            *((f"{folder}: {listed} not read: transformers would not load them either",) if aside else ()),
            *((sentence(towers, left),) if towers else ()),
        ),
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
            "config.json is missing", where=str(file), fix="pass the model's folder, or its config.json with --config"
        )
    return read_object(file, CONFIGURATION), str(file)


def step_of(folder: Path) -> dict[str, str]:
    """{"iteration": the step of the training}, by the Trainer's trainer_state.json, else by a name like checkpoint-500.

    Names and key of huggingface/transformers `trainer.py` and `trainer_callback.py` (5.23). {} where neither says it.
    """
    step: Any = None
    with contextlib.suppress(CrossdockError):
        step = read_json(folder / "trainer_state.json")[0].get("global_step")
    if type(step) is not int or step < 0:
        named = re.fullmatch(r"checkpoint-(\d{1,15})", folder.absolute().name)
        step = None if named is None else int(named[1])
    return {} if step is None else {"iteration": str(step)}


def _index_problems(index: Mapping[str, str], home: dict[str, Path], broken: set[str], folder: Path) -> list[Problem]:
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
