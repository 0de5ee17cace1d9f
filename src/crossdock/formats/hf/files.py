"""Which files of a Hugging Face folder are the model: chosen as transformers chooses, and what is left aside is named.

transformers 5.24 (`modeling_utils.py`, _get_resolved_checkpoint_files) looks for model.safetensors, then for its index,
then for pytorch_model.bin, then for that one's index. Two complete sets of the same kind are an error: nothing says
which of them is meant. Looks at names, and reads the index.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError, NotACheckpointError
from crossdock.io.json import CONFIGURATION, read_object

KINDS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
SHARD = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d+)\.(safetensors|bin)\Z")
_WEIGHTS = (".safetensors", ".bin")
# weights of other programs that publishers put beside transformers' own, and files of Trainer that are not weights
_BESIDE = re.compile(r"consolidated.*|training_args\.bin|optimizer.*|scheduler.*|.*adapter.*|random_states.*")


@dataclass(frozen=True, slots=True)
class Chosen:
    """files in order; index: tensor -> file where there is one, total: what it says of their size; aside: not read."""

    files: tuple[Path, ...]
    index: Mapping[str, str] | None = None
    total: Any = None
    aside: tuple[str, ...] = ()


def weight_files(folder: Path) -> Chosen:
    """The weights of `folder`. Raises NotACheckpointError, and FormatError for sets that are broken or compete."""
    names = sorted(entry.name for entry in folder.iterdir())
    weights = [name for name in names if name.endswith(_WEIGHTS) and not _BESIDE.match(name)]
    for whole, index in KINDS:
        if whole not in names and index not in names:
            continue
        if index not in names:
            return _chosen(folder, Chosen((folder / whole,)), weights)
        indexed = _indexed(folder, index, complete=whole not in names)
        if whole not in names:
            return _chosen(folder, indexed, weights)
        if indexed.files and folder / whole not in indexed.files:
            raise FormatError(
                f"two complete sets of weights: {whole}, and {len(indexed.files)} files that {index} names",
                where=str(folder),
                cause="a model saved into the folder of another; transformers would take the first",
                fix=f"remove the set that is not wanted, or pass the file: {folder / whole}",
                check="two-sets",
            )
        return _chosen(folder, Chosen((folder / whole,)), [*weights, index])
    return _shards(folder, weights)


def _shards(folder: Path, weights: list[str]) -> Chosen:
    """Shards that no index names: one set, and all of it."""
    sets: dict[tuple[str, int, str], list[str]] = {}
    for name in weights:
        if match := SHARD.match(name):
            sets.setdefault((match[1], int(match[3]), match[4]), []).append(name)
    complete = [found for (_, count, _), found in sets.items() if len(found) == count]
    if len(complete) > 1:
        raise FormatError(
            f"{len(complete)} complete sets of shards and no index that names one", where=str(folder),
            got=" and ".join(f"{found[0]} to {found[-1]}" for found in complete[:4]),
            fix="remove the set that is not wanted", check="two-sets",
        )  # fmt: skip
    if complete:
        return _chosen(folder, Chosen(tuple(folder / name for name in complete[0])), weights)
    if sets:
        listed = [name for found in sets.values() for name in found]
        raise FormatError("shards are missing, and so is the index", where=str(folder), got=", ".join(listed[:8]),
                          fix="fetch the missing files", check="half-checkpoint")  # fmt: skip
    fix = f"pass the file: {folder / weights[0]}, or name it {KINDS[0][0]}" if len(weights) == 1 else ""
    raise NotACheckpointError(
        "no weights found under the names that transformers looks for",
        where=str(folder),
        expected=" or ".join(name for kind in KINDS for name in kind),
        got=", ".join(weights or sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing",
        fix=fix,
    )


def _chosen(folder: Path, chosen: Chosen, weights: list[str]) -> Chosen:
    used = {path.name for path in chosen.files}
    return Chosen(chosen.files, chosen.index, chosen.total, tuple(name for name in weights if name not in used))


def _indexed(folder: Path, name: str, *, complete: bool) -> Chosen:
    """The files of an index; none when not all are there and they need not be."""
    index = folder / name
    found = read_object(index, CONFIGURATION)
    weight_map = found.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError("weight_map is not a map of tensors to files", where=str(index))
    names = sorted(set(weight_map.values()))
    outside = [n for n in names if Path(n).name != n]
    if outside:
        raise FormatError("the index names files outside the folder", where=str(index), got=", ".join(outside[:5]))
    missing = [n for n in names if not os.path.isfile(folder / n)]  # False for a name that no disk takes
    if missing and not complete:
        return Chosen(())
    if missing:
        raise FormatError(
            f"the index names {len(missing)} files that do not exist",
            where=str(index),
            expected=", ".join(missing[:8]),
            cause="an unfinished download or copy",
            fix="fetch the files again, or the whole folder",
            check="half-checkpoint",
        )
    total = found.get("metadata", {}).get("total_size") if isinstance(found.get("metadata"), dict) else None
    return Chosen(tuple(folder / n for n in names), weight_map, total)
