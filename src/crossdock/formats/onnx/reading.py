"""Graphs that lie beside weights: whether one is ours and sound, and where it differs from another.

Everything wrong is metadata with the node that it is about. Reads the graph and no weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from crossdock.codecs import registry as codecs
from crossdock.errors import FormatError, Problem
from crossdock.formats.onnx.graph import CONTRIB, PRODUCER, TYPES
from crossdock.formats.onnx.options import OPS
from crossdock.formats.stored import Source
from crossdock.io.files import read_exact, reading, size_of

LARGEST = 256 << 20  # bytes of a graph
INLINE = 1 << 20  # bytes of a tensor in the graph itself
MOST = 8  # problems of one kind that are listed
# what graphs of this program are made of
OPERATORS = frozenset((
    "Add", "And", "Attention", "Cast", "Clip", "Concat", "ConstantOfShape", "Conv", "Cos", "CumSum", "Div", "Equal",
    "Exp", "Expand", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual",
    "Identity",
    "LayerNormalization", "Less", "Log", "Loop", "MatMul", "Min", "Mul", "Neg", "NonZero", "OneHot", "Pad",
    "RMSNormalization", "Range", "ReduceMean", "ReduceSum", "Relu", "Reshape", "RotaryEmbedding", "ScatterND", "Shape",
    "Sigmoid", "Sin", "Slice", "Softmax", "Softplus", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "TopK", "Transpose",
    "Unique", "Unsqueeze", "Where",
))  # fmt: skip
CONTRIBUTED = frozenset(("GroupQueryAttention",))


@dataclass(frozen=True)
class ReadGraph:
    """A sound graph. notes: what there is to say about it, and the options that it was written with."""

    notes: Mapping[str, str]


def read_graph(path: Path, weights: Source) -> ReadGraph:
    """The graph at `path`, whose tensors are those of `weights`. Raises FormatError with everything that is wrong."""
    with reading(path) as fd:
        size = size_of(fd)
        if size > LARGEST:
            raise FormatError("too large for a graph beside weights", where=str(path), got=f"{size:,} bytes",
                              expected=f"at most {LARGEST:,}")  # fmt: skip
        model = parsed(read_exact(fd, 0, size, str(path)), str(path))
    where = str(path)
    problems = [*_foreign(model, where), *_outside(model, weights, where), *_dangling(model, where)]
    if problems:
        raise FormatError(problems)
    nodes = list(_nodes(model.graph))
    kinds = {node.op_type for node in nodes}
    attention = "GroupQueryAttention" if "GroupQueryAttention" in kinds else "Attention" if "Attention" in kinds else ""
    referring = sum(1 for tensor in model.graph.initializer if tensor.external_data)
    opset = next(one.version for one in model.opset_import if not one.domain)
    caches = sum(1 for one in model.graph.input if one.name.endswith(".key"))
    text = f"opset {opset}, {len(nodes):,} nodes, {referring:,} tensors by reference, {caches} caches"
    notes = {"graph": f"{text}, {attention}" if attention else text}
    metadata = {entry.key: entry.value[:40] for entry in model.metadata_props}
    if metadata.get("ops") in OPS:
        notes["operators"] = metadata["ops"]
    if metadata.get("max_shard_size", "").isdecimal():
        notes["largest shard"] = metadata["max_shard_size"]
    return ReadGraph(notes)


def parsed(content: bytes, where: str) -> Any:
    """The model in `content`. Raises FormatError."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise FormatError("not an ONNX graph, or a damaged one", where=where, fix="export again with --force") from None
    if not model.graph.node or not model.opset_import:
        raise FormatError("an ONNX file without a graph", where=where, fix="export again with --force")
    return model


def differences(wanted: bytes, found: bytes, where: str) -> list[Problem]:
    """Where the graph `found` differs from `wanted`: nodes first, then tensors, inputs and outputs, then the rest."""
    try:
        ours, theirs = parsed(wanted, where), parsed(found, where)
    except FormatError as error:
        return list(error.problems)
    problems = _unlike_nodes(list(_nodes(ours.graph)), list(_nodes(theirs.graph)), where)
    for what in ("initializer", "input", "output"):
        problems += _unlike(what, getattr(ours.graph, what), getattr(theirs.graph, what), theirs.graph, where)
    if not problems:
        for model in (ours, theirs):
            model.graph.Clear()
        if ours != theirs:
            problems.append(Problem("the graph's header differs", where, _short(ours), _short(theirs)))
    return problems


def _unlike_nodes(ours: list[Any], theirs: list[Any], where: str) -> list[Problem]:
    problems = []
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            at = f"{where}: node {other.name or other.op_type}"
            problems.append(Problem("differs from what the source gives", at, _short(mine), _short(other)))
    if len(ours) != len(theirs):
        rest = (theirs if len(theirs) > len(ours) else ours)[min(len(ours), len(theirs))]
        more = "more" if len(theirs) > len(ours) else "fewer"
        at = f"{where}: node {rest.name or rest.op_type}"
        counts = str(len(ours)), str(len(theirs))
        problems.insert(0, Problem(f"the graph has {more} nodes than the source gives", at, *counts))
    return problems[:MOST]


def _unlike(what: str, ours: Iterable[Any], theirs: Iterable[Any], graph: Any, where: str) -> list[Problem]:
    mine, other = {one.name: one for one in ours}, {one.name: one for one in theirs}
    names = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    return [
        Problem(f"{what} {name!r} differs from what the source gives", f"{where}: {_user(graph, name)}",
                _short(mine.get(name)), _short(other.get(name)))
        for name in names[:MOST]
    ]  # fmt: skip


def _foreign(model: Any, where: str) -> Iterator[Problem]:
    """A graph of another program, and operators that ours do not have."""
    if model.producer_name != PRODUCER:
        first = model.graph.node[0]
        yield Problem(
            "this graph was written by another program", f"{where}: node {first.name or first.op_type}",
            PRODUCER, repr(model.producer_name)[:80], fix="--format hf reads the weights alone",
        )  # fmt: skip
        return
    known = {"": OPERATORS, CONTRIB: CONTRIBUTED}
    strange = [node for node in _nodes(model.graph) if node.op_type not in known.get(node.domain, ())]
    for node in strange[:MOST]:
        yield Problem("an operator that no graph of crossdock has", f"{where}: node {node.name}", got=node.op_type)
    for graph in (model.graph, *_bodies(model.graph)):
        for tensor in graph.initializer:
            if len(tensor.raw_data) > INLINE:
                at = f"{where}: {_user(model.graph, tensor.name)}"
                got = f"{len(tensor.raw_data):,} bytes in {tensor.name}"
                yield Problem("a tensor of weights lies in the graph itself", at, "a reference", got)


def _outside(model: Any, weights: Source, where: str) -> Iterator[Problem]:
    """References that are not to bytes of the weights, of their type."""
    root = weights.root if weights.root.is_dir() else weights.root.parent
    inside: dict[str, list[tuple[int, int, str]]] = {}
    for stored in weights.tensors.values():
        for extent in stored.extents:
            name = os.path.relpath(weights.files[extent.file].path, root)
            inside.setdefault(name, []).append((extent.offset, extent.offset + extent.nbytes, stored.dtype))
    for spans in inside.values():
        spans.sort()
    names = {number: name for name, number in TYPES.items()}
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        at = f"{where}: {_user(model.graph, tensor.name)}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
            yield Problem("a reference out of the folder", at, "a file of the folder", location[:120])
            continue
        try:
            start, length = int(entries.get("offset", "0")), int(entries["length"])
        except (KeyError, ValueError):
            yield Problem("a reference without offset and length", at, got=str(entries)[:120])
            continue
        dtype, elements = names.get(tensor.data_type, ""), 1
        for size in tensor.dims:
            elements *= size
        if dtype not in ("float32", "float16") or length != elements * codecs.get(dtype).block_bytes:
            yield Problem("a reference of another length than the tensor has", at, got=f"{length:,} bytes")
        elif not _covered(inside.get(location, []), start, start + length, dtype):
            what = f"bytes {start:,} to {start + length:,} of {location[:80]}"
            yield Problem("a reference to bytes that are not weights", at, f"{dtype} tensors", what)


def _covered(spans: list[tuple[int, int, str]], start: int, end: int, dtype: str) -> bool:
    """Whether tensors of `dtype`, one behind another, fill start to end."""
    for low, high, kind in spans:
        if low <= start < high and kind == dtype:
            start = high
        if start >= end:
            return True
    return False


def _dangling(model: Any, where: str) -> Iterator[Problem]:
    """Inputs of nodes that nothing gives."""
    produced = {one.name for one in (*model.graph.input, *model.graph.initializer)} | {""}
    for graph in _bodies(model.graph):
        produced |= {one.name for one in (*graph.input, *graph.initializer)}
    found = 0
    for node in _nodes(model.graph, within_first=True):
        for name in node.input:
            if name not in produced and found < MOST:
                found += 1
                yield Problem(
                    "an input that nothing gives", f"{where}: node {node.name or node.op_type}", got=name[:120]
                )
        produced |= set(node.output)


def _nodes(graph: Any, *, within_first: bool = False) -> Iterator[Any]:
    """Every node, in order, those of bodies behind (or before) the node that has them."""
    for node in graph.node:
        if not within_first:
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, within_first=within_first)
        if within_first:
            yield node


def _bodies(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from _bodies(attribute.g)


def _user(graph: Any, name: str) -> str:
    """The first node that reads `name`, or what the name is where none does."""
    reader = next((node for node in _nodes(graph) if name in node.input), None)
    return f"{name}, which no node reads" if reader is None else f"node {reader.name or reader.op_type}"


def _short(message: Any) -> str:
    """A node or tensor in one line."""
    if message is None:
        return "not there"
    text = " ".join(str(message).split())
    return text if len(text) <= 160 else text[:159] + "…"
