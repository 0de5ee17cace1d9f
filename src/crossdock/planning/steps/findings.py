"""What targets are told about the model and its source: the same before and after encodings are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.formats.target import Findings, Placed, TensorSpec
from crossdock.layout.keys import written
from crossdock.layout.maps import inverse
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.steps.sources import Sourced


def findings(
    checkpoint: Checkpoint, sourced: Sourced, tensors: Sequence[TensorSpec], fixed: Mapping[str, str]
) -> Findings:
    """What is known when the target has `tensors`. fixed: encodings of an output that is being verified."""
    return Findings(
        config=checkpoint.config,
        vocab_from=f"vocab_size from {checkpoint.described.origins.get('vocab_size', 'default')}",
        companions=checkpoint.source.companion_files,
        encoding=sourced.places.rules.encoding,
        header=_header(sourced, tensors),
        source_dtype=_main_dtype([fill.spec for fill in sourced.fills]),
        fixed=fixed,
        alphas=sourced.places.alphas,
        placed=partial(_placed, checkpoint, sourced),
    )


def _placed(checkpoint: Checkpoint, sourced: Sourced) -> list[Placed]:
    """Every canonical tensor, layer by layer, in the containers of the target."""
    family, places, out = checkpoint.family, sourced.places, []
    sizes = family.sizes(checkpoint.config)
    for container in places.containers:
        for lens in container.lenses:
            axes = family.tensors[lens.tensor].axes
            rule = container.rule
            steps = inverse(rule.storing(lens.tensor, places.variables)) if lens.tensor in rule.tensors else ()
            span = next((p for p in lens.axes if p.axis == "layer"), None)
            for layer in (None,) if span is None else range(span.low, span.high):
                own = {axis: size for axis, size in sizes.of(axes, layer).items() if axis != "layer"}
                out.append(Placed(lens.tensor, layer, own, container.name, container.shape, lens, steps))
    return out


def _main_dtype(tensors: Sequence[TensorSpec]) -> str:
    """The dtype that most elements of matrices have, those aside that are divided by scales."""
    elements: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + math.prod(tensor.shape)
    elements = {name: count for name, count in elements.items() if not _is_scaled(name)}
    return max(elements, key=lambda name: elements[name], default="float32")


def _is_scaled(dtype: str) -> bool:
    return dtype in codecs.names() and codecs.get(dtype).is_scaled  # GGUF lists types that have no codec


def _header(sourced: Sourced, tensors: Sequence[TensorSpec]) -> dict[str, tuple[str, Any]]:
    """The layout's [write] and the keys of the state of training: key -> (type, value)."""
    rules = sourced.places.rules
    values = {**sourced.places.variables, "dtype": _main_dtype(tensors)}
    out = written(rules.writing.keys, values, rules.format)
    return {**out, **sourced.keys, **{key: (kind, value) for key, kind, value in sourced.state.keys}}
