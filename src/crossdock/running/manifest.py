"""The manifest beside an output: what was written, from what, with a hash of every file and of every tensor.

`docs/manifest.md` describes its keys. It holds no time, no path of the machine and nothing of the order of work: equal
runs write equal manifests, on any machine. `read_manifest` also reads version 2, in which every file has a hash and
what is not proven is only a warning, and version 1, which had no hashes of files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from crossdock.errors import FormatError, InputError
from crossdock.formats.stored import SourceFile
from crossdock.io.files import head_of, read_exact, reading, size_of
from crossdock.io.json import JsonLimits, parse_json
from crossdock.planning.plan import Plan
from crossdock.running.options import WriteOptions
from crossdock.running.results import RunReport, TensorResult
from crossdock.version import VERSION

SCHEMA: Final = 3
SUFFIX: Final = ".manifest.json"
_LIMITS: Final = JsonLimits(200_000, 4, 50_000_000)
_LARGEST: Final = 1 << 30
_HASHED: Final = 128 << 20  # bytes up to which a tokenizer's file is hashed; a GGUF that brings one along is a model
_ABSOLUTE: Final = re.compile(r"(?<![\w.~:/])/(?:[^\s/:,;()'\"]+/)+")


def manifest_path(output: Path) -> Path:
    """Return the path of the manifest: `OUT.manifest.json`, beside OUT."""
    return output.with_name(f"{output.name}{SUFFIX}")


def manifest_bytes(plan: Plan, report: RunReport, options: WriteOptions) -> bytes:
    """The manifest as JSON; `report` has every file of the output under its final name. Raises InputError, OSError."""
    hash_name = options.hash
    unproven = {f"not proven: {sentence}" for sentence in plan.described.unproven}
    base = plan.source_root if plan.source_root.is_dir() else plan.source_root.parent
    document: dict[str, Any] = {
        "manifest": SCHEMA,
        "crossdock": VERSION,
        "plan": plan.digest,
        "hash": hash_name,
        "source": {
            "format": plan.source_format,
            "iteration": plan.iteration,
            "weights": plan.weights,
            "files": [{"path": _relative(f.path, base), "bytes": f.size} for f in plan.sources],
        },
        "tokenizer": None
        if not plan.tokenizer
        else {
            "from": plan.tokenizer_from,
            "files": [{"name": f.path.name, "bytes": f.size, "sha256": _sha256_of(f)} for f in plan.tokenizer],
            "keys": vocabulary_hash(plan.facts),
        },
        "target": {
            "format": plan.target_format,
            "single_file": plan.single_file,
            "file_hashes": options.file_hashes,
            "files": [{"name": f.name, "bytes": f.nbytes, "sha256": f.sha256 or None} for f in report.files],
        },
        "config": plan.described.config.as_dict(),
        "origins": {name: _without_places(text, base) for name, text in plan.described.origins.items()},
        "unproven": [_without_places(text, base) for text in plan.described.unproven],
        "warnings": [_without_places(text, base) for text in plan.warnings if text not in unproven],
        "ignored": {name: _without_places(text, base) for name, text in plan.ignored.items()},
        "tensors": [
            {
                "name": t.name,
                "file": t.file,
                "offset": planned.offset,
                "bytes": t.nbytes,
                "dtype": t.dtype,
                "shape": list(t.shape),
                hash_name: t.hash,
                "from": list(planned.sources),
                "holds": list(planned.of),
                **_found(t),
            }
            for t, planned in zip(report.tensors, plan.tensors, strict=True)
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def vocabulary_hash(facts: Mapping[str, Any]) -> str | None:
    """sha256 over the keys `tokenizer.*` of a GGUF header, sorted, as JSON with floats as float32; None without a
    vocabulary. The same for what a plan has and for what is read back from a file."""
    if "tokenizer.ggml.tokens" not in facts:
        return None
    digest = hashlib.sha256()
    for key in sorted(key for key in facts if key.startswith("tokenizer.")):
        digest.update(json.dumps([key, _plain(facts[key])]).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return float(np.float32(value)) if isinstance(value, float) else value


def _found(tensor: TensorResult) -> dict[str, Any]:
    """What was counted and measured in a tensor, without the zeros."""
    census = tensor.census
    counts: dict[str, Any] = {name: getattr(census, name) for name in ("nan", "inf", "overflow", "underflow")}
    if tensor.figures is not None:
        figures = tensor.figures
        named = {"max_abs": figures.max_abs, "rms": figures.rms, "relative_rms": figures.relative_rms}
        # rounded, they do not depend on the blocks in which sums were made
        counts["error"] = {name: float(f"{value:.6g}") for name, value in named.items()}
    counts |= {"all_zero": census.all_zero and census.elements > 0, "equal_experts": tensor.alike}
    return {name: value for name, value in counts.items() if value}


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name


def _without_places(text: str, base: Path) -> str:
    """A sentence without the folders of this machine: paths below the source from there on, others by their names."""
    return _ABSOLUTE.sub("", text.replace(f"{base}/", ""))


def _sha256_of(file: SourceFile) -> str | None:
    if file.size > _HASHED:
        return None
    with reading(file.path) as fd:
        if size_of(fd) != file.size:
            raise InputError("the tokenizer changed while the model was written", where=str(file.path))
        return hashlib.sha256(read_exact(fd, 0, file.size, str(file.path))).hexdigest()


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of the output as the manifest has it. sha256: "" where the manifest has none (version 1, a run that
    was asked for none, a large tokenizer)."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ManifestTensor:
    """A tensor as the manifest has it. offset: its first byte in `file`; None in version 1. hash: hexadecimal."""

    name: str
    file: str
    offset: int | None
    nbytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read.

    version    of its schema; format: of the output; single_file: OUT is the file
    hash       the name of the tensors' hash: "xxh3" or "sha256"
    tokenizer  files of the tokenizer that the output was made with
    iteration  of the training, where the source says it
    vocabulary sha256 of a GGUF's tokenizer keys (`vocabulary_hash`); "" where the manifest has none
    unproven   what the user said against the model's own configuration; empty before version 3
    """

    version: int
    format: str
    single_file: bool
    hash: str
    files: tuple[ManifestFile, ...]
    tensors: tuple[ManifestTensor, ...]
    tokenizer: tuple[ManifestFile, ...] = ()
    tokenizer_from: str = ""
    iteration: int | None = None
    vocabulary: str = ""
    unproven: tuple[str, ...] = ()


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file. Raises NotACheckpointError (no such file), FormatError, EnvironmentProblem."""
    with reading(path) as fd:
        if size_of(fd) > _LARGEST:
            raise FormatError("too large for a manifest", where=str(path), expected=f"at most {_LARGEST:,} bytes")
        data = read_exact(fd, 0, size_of(fd), str(path))
    try:
        document = parse_json(data, _LIMITS)
        return _parsed(document)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(
            f"not a manifest of crossdock: {what}", where=str(path), cause="a truncated or edited file"
        ) from None


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest by its name and its first bytes. Never raises."""
    try:
        return path.name.endswith(SUFFIX) and path.is_file() and head_of(path, 1) == b"{"
    except (OSError, InputError):
        return False


def _parsed(document: Any) -> Manifest:
    version = document.get("manifest", 1) if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError("it is not an object with a version")
    if version > SCHEMA:
        raise ValueError(f"its version is {version}, this crossdock reads 1 to {SCHEMA}")
    target, hash_name = document["target"], _text(document["hash"])
    if hash_name not in ("xxh3", "sha256"):
        raise ValueError(f"unknown hash {hash_name!r}")
    without = version == 1 or (version > 2 and _text(target["file_hashes"]) == "none")
    files = tuple(_file(one, version, nullable=without) for one in target["files"])
    single = target["single_file"] if version > 1 else _text(target["format"]).startswith("gguf")
    tokenizer = document.get("tokenizer") or {}
    for part in (target, document["source"], tokenizer):
        if not isinstance(part, dict):
            raise ValueError(f"{part!r} is not an object"[:200])
    iteration = document["source"].get("iteration")
    tensors = tuple(
        ManifestTensor(
            _text(one["name"]), _text(one["file"]), _count(one["offset"]) if version > 1 else None,
            _count(one["bytes"]), _text(one[hash_name]),
        )
        for one in document["tensors"]
    )  # fmt: skip
    if len({file.name for file in files}) != len(files) or not files:
        raise ValueError("it names no file, or one of them twice")
    if not {one.file for one in tensors} <= {file.name for file in files} or (single and len(files) != 1):
        raise ValueError("its tensors are in files that it does not name")
    return Manifest(
        version, _text(target["format"]), bool(single), hash_name, files, tensors,
        tuple(_file(one, version, nullable=True) for one in tokenizer.get("files", ())),
        str(tokenizer.get("from", "")), iteration if type(iteration) is int else None,
        str(tokenizer.get("keys") or ""),
        tuple(_text(one) for one in (document["unproven"] if version > 2 else ())),
    )  # fmt: skip


def _file(entry: Mapping[str, Any], version: int, *, nullable: bool) -> ManifestFile:
    name = _text(entry["name"])
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or {"..", ".", ""} & set(name.split("/")):
        raise ValueError(f"{name!r} is not a name inside the output")
    sha256 = entry["sha256"] if version > 1 else None
    if sha256 is None and nullable:
        return ManifestFile(name, _count(entry["bytes"]), "")
    if not re.fullmatch("[0-9a-f]{64}", _text(sha256)):
        raise ValueError(f"the sha256 of {name!r} is not 64 hexadecimal digits")
    return ManifestFile(name, _count(entry["bytes"]), str(sha256))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text"[:200])
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of bytes"[:200])
    return value
