"""How many bytes a model's tensors would take in each target, without planning: shapes from the target's layout, types
from the target itself.

Tensor data only; headers, alignment and tokenizers come on top.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from types import MappingProxyType
from typing import Any, Final

from crossdock.codecs.codec import encoded_size
from crossdock.codecs.registry import get
from crossdock.errors import PlanError
from crossdock.formats import registry
from crossdock.formats.target import Findings, Target, TensorSpec
from crossdock.layout.lenses import Container
from crossdock.model.config import ModelConfig
from crossdock.model.family import Family
from crossdock.options import made
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.steps.containers import TargetContainers, containers

# what is shown: a target, and the types that people ask it for
TYPES: Final = MappingProxyType({"hf": ("float32", "bfloat16"), "gguf": ("float32", "float16", "q8_0", "q5_0", "q4_0")})
_NUMBER = re.compile(r"\d+")


def parameters(family: Family, config: ModelConfig) -> int:
    """How many numbers the canonical tensors of a model hold."""
    sizes = family.sizes(config)
    return sum(sizes.elements(decl.axes, family.layers_of(decl, config)) for decl in family.present(config).values())


def target_sizes(checkpoint: Checkpoint) -> list[tuple[str, str, int]]:
    """(target, type, bytes of tensor data) for each of `TYPES`; a target that cannot hold the model is left out."""
    return [size for name, types in TYPES.items() for size in _sizes(checkpoint, name, types)]


def _sizes(checkpoint: Checkpoint, name: str, types: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    try:
        places = containers(checkpoint, _target(name, types[0]))
    except PlanError:
        return
    if places.problems:
        return
    # tensors whose names differ only in numbers, and whose shapes are equal, are encoded alike
    kinds: dict[tuple[str, tuple[int, ...]], list[Container]] = {}
    for container in places.containers:
        kinds.setdefault((_NUMBER.sub("0", container.name), container.shape), []).append(container)
    for dtype in types:
        target, found = _target(name, dtype), _findings(checkpoint, places, dtype)
        plain = dtype if get(dtype).block == 1 else "float32"
        specs = [TensorSpec(one.name, one.shape, plain, one.part) for one, *_ in kinds.values()]
        pairs = zip(specs, target.encode(specs, found), strict=True)
        encoded = [spec._replace(dtype=encoding.dtype) for spec, encoding in pairs]
        counts = [len(alike) for alike in kinds.values()]
        stored = sum(n * encoded_size(get(one.dtype), prod(one.shape)) for n, one in zip(counts, encoded, strict=True))
        yield name, dtype, stored + sum(len(data) for _, data in target.extra(encoded, found))


def _target(name: str, dtype: str) -> Target[Any]:
    chosen = {"dtype": dtype} if get(dtype).block == 1 else {"quantize": dtype}
    return registry.target(name)(made(registry.options_type(name), chosen))


def _findings(checkpoint: Checkpoint, places: TargetContainers, dtype: str) -> Findings:
    return Findings(checkpoint.config, "", (), places.rules.encoding, {}, dtype, {})
