"""TensorRT-LLM checkpoints as a source: headers of config.json and of every rank's safetensors file.

Engines are not read, nor weights that were packed for a kernel; fp8 weights are read by their scales.
Facts: as in the package's docstring.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import ConfigError, FormatError, NotACheckpointError, Problem
from crossdock.formats import safetensors
from crossdock.formats.companions import found_in
from crossdock.formats.fp8.stored import numbers, scaled
from crossdock.formats.stored import Extent, Pair, Source, SourceFile, StoredTensor, TrainingScales
from crossdock.formats.trtllm.config import ROUTER, settings
from crossdock.formats.trtllm.consistency import contradictions
from crossdock.formats.trtllm.ranks import MOST, file_name, partition, parts_of
from crossdock.io.json import CONFIGURATION, json_object, read_object

_RANK = re.compile(r"rank(\d{1,5})\.safetensors\Z")
_EXPERTS = (".mlp.fc.weight", ".mlp.proj.weight")  # with a dimension more than without experts
_WEIGHT, _INPUT = "weights_scaling_factor", "activation_scaling_factor"
_TABLES = ("mapping", "quantization", "moe", "rotary_scaling")


def sniff(path: Path) -> bool:
    """A folder with config.json and a rank file, or such a file, which is refused by name."""
    try:
        if path.is_file():
            return _RANK.match(path.name) is not None and (path.parent / "config.json").is_file()
        return path.is_dir() and (path / "config.json").is_file() and any(map(_RANK.match, _names(path)))
    except OSError:
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open a checkpoint folder. Raises NotACheckpointError, FormatError with all that is missing, ConfigError."""
    return _with_scales(open_plain(path))


def open_plain(path: Path) -> Source:
    """The same with every tensor as it is stored, scales too."""
    if path.is_file():
        raise NotACheckpointError("this is one rank of a model", where=str(path), fix=f"pass the folder: {path.parent}")
    if not path.is_dir() or not (path / "config.json").is_file():
        raise NotACheckpointError(
            "not a TensorRT-LLM checkpoint", where=str(path), expected="a folder with config.json"
        )
    config = _read(path / "config.json")
    where = str(path / "config.json")
    stated = settings(config)
    tp, pp, etp, ep = (
        _count(stated[name], name, where)
        for name in ("tensor_parallel", "pipeline_parallel", "moe_tensor_parallel", "moe_expert_parallel")
    )
    layers = _count(config.get("num_hidden_layers"), "num_hidden_layers", where)
    if tp * pp > MOST or etp * ep != tp or pp > layers:
        raise ConfigError("inconsistent parallel sizes", where=where, got=f"tp {tp}, pp {pp}, moe {etp} * {ep}")
    _check_files(path, tp * pp)
    files: list[SourceFile] = []
    tensors: dict[tuple[str, str], StoredTensor] = {}
    recorded: Mapping[str, Any] = {}
    for rank in range(tp * pp):
        file = path / file_name(rank)
        header = safetensors.read_header(file)
        recorded = recorded or _recorded_fields(header.metadata.get("crossdock"), str(file))
        part, experts = parts_of(rank, tp, ep)
        stacked = {name.removesuffix("weight") for name, t in header.tensors.items()
                   if len(t.shape) == 3 and name.endswith(_EXPERTS)}  # fmt: skip
        for name, tensor in header.tensors.items():
            home = experts if name.rpartition(".")[0] + "." in stacked else part
            extent = Extent(rank, tensor.begin, tensor.end - tensor.begin, (0,) * len(tensor.shape), tensor.shape)
            meant = str(recorded.get("router_dtype", "")) if name.endswith(ROUTER) else ""
            tensors[home, name] = StoredTensor(name, tensor.shape, tensor.codec, (extent,), home, meant=meant)
        files.append(SourceFile.of(file))
    found = {name for _, name in tensors}
    if problems := contradictions(config, recorded, found, {tensor.dtype for tensor in tensors.values()}, where):
        raise ConfigError(problems)
    return Source(
        format="trtllm",
        root=path,
        files=tuple(files),
        tensors=tensors,
        metadata={**config, **stated, **({"crossdock": recorded} if recorded else {})},
        metadata_at=where,
        ranks={"tp": tp, "pp": pp, "etp": etp, "ep": ep},
        partitions=partition(layers, pp),
        companion_files=tuple(found_in(path)),
        notes={"files": str(len(files)), "written by": "crossdock" if recorded else "another program"},
    )


def _with_scales(source: Source) -> Source:
    """`source` with its fp8 weights' scales found: one a tensor, or one an expert."""
    if source.metadata.get("quant_algo") != "FP8":
        return source
    weights: dict[tuple[str, str], StoredTensor] = {}
    problems: list[Problem] = []
    for (part, name), tensor in source.tensors.items():
        if tensor.dtype != "float8_e4m3fn":
            continue
        scale = source.tensors.get((part, name.removesuffix("weight") + _WEIGHT))
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        if scale is None or math.prod(scale.shape) not in (1, experts):
            problems.append(Problem("an fp8 weight without its scales", name, expected=f"{experts} in {_WEIGHT}"))
            continue
        scale_blocks = ScaleBlocks.whole(tensor.shape, math.prod(scale.shape))
        weights[part, name] = scaled(tensor, scale, scale_blocks, "float32")
    if problems:
        raise FormatError(problems[:20])
    beside = [key for key in source.tensors if key[1].endswith((_WEIGHT, _INPUT))]
    return replace(
        source,
        tensors={key: weights.get(key, t) for key, t in source.tensors.items() if key not in beside},
        metadata={**source.metadata, "quant_algo": None},
        skipped={f"*.{_INPUT}": "input scale of a layer: only fp8 outputs can store it"},
        scales=partial(_static, source, weights),
        notes={**source.notes, "fp8": f"{len(weights)} weights with scales"},
    )


def _static(source: Source, weights: Mapping[tuple[str, str], StoredTensor]) -> TrainingScales:
    """Scale of the input and of the weight, or of each expert."""
    out: dict[tuple[str, str], dict[tuple[int, ...], Pair]] = {}
    for (part, name), tensor in weights.items():
        input_scale = source.tensors.get((part, name.removesuffix("weight") + _INPUT))
        if input_scale is None or tensor.scaling is None or math.prod(input_scale.shape) != 1:
            continue
        (activation,), found = numbers(source, input_scale), numbers(source, source.tensors[part, tensor.scaling.name])
        experts = range(tensor.shape[0]) if len(tensor.shape) == 3 else None
        indices = [()] if experts is None or len(found) == 1 else [(expert,) for expert in experts]
        out[part, name] = dict(zip(indices, ((activation, weight) for weight in found), strict=True))
    return TrainingScales(out)


def _names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


def _read(file: Path) -> dict[str, Any]:
    found = read_object(file, CONFIGURATION)
    wrong = [key for key in _TABLES if not isinstance(found.get(key, {}), dict | None)]
    if wrong:
        raise ConfigError(
            [Problem("not a JSON object", f"{key} in {file}", got=repr(found[key])[:80]) for key in wrong]
        )
    return found


def _count(value: Any, name: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError("not a number of ranks or layers", where=f"{name} in {where}", got=repr(value)[:80])
    return value


def _recorded_fields(text: str | None, where: str) -> Mapping[str, Any]:
    """What crossdock wrote beside the tensors, or nothing."""
    if text is None:
        return {}
    return json_object(text.encode("utf-8", "surrogatepass"), CONFIGURATION, f"the metadata of crossdock in {where}")


def _check_files(path: Path, world_size: int) -> None:
    """Every rank has its file, and no file is of another model."""
    found = {int(match[1]) for name in _names(path) if (match := _RANK.match(name))}
    missing = sorted(set(range(world_size)) - found)
    problems = []
    if missing:
        names = ", ".join(map(file_name, missing[:8])) + (" and more" if len(missing) > 8 else "")
        what = f"{len(missing)} rank files are missing"
        problems.append(
            Problem(what, str(path), expected=names, fix="fetch the missing files", check="half-checkpoint")
        )
    stray = sorted(found - set(range(world_size)))
    if stray:
        what = f"{len(stray)} rank files more than the {world_size} of config.json"
        problems.append(Problem(what, str(path), got=", ".join(map(file_name, stray[:8]))))
    if problems:
        raise FormatError(problems)
