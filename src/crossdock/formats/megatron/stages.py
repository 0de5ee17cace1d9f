"""Which layers every pipeline stage and virtual chunk of a Megatron run holds.

Pure arithmetic over args. Chunk v of stage p is number v * stages + p in the order in which layers run, so the
counts alone give the ranges. Facts from megatron-core 0.11 to 0.19.2 (`transformer_block.get_num_layers_to_build`,
`transformer_layer.get_transformer_layer_offset`, `pipeline_parallel_layer_layout.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from crossdock.errors import ConfigError
from crossdock.layout.partitions import RankRanges

MAX_LAYERS = 100_000


def layer_ranges(counts: Sequence[int], stages: int) -> RankRanges:
    """Layers [start, stop) of (("pp", p), ("vpp", v)); `counts` in running order: v * stages + p."""
    stops = list(accumulate(counts))
    return {
        (("pp", i % stages), ("vpp", i // stages)): (stop - count, stop)
        for i, (count, stop) in enumerate(zip(counts, stops, strict=True))
    }


def layer_counts(
    args: Mapping[str, Any], stages: int, chunks: int, where: str, segments: Sequence[int] = ()
) -> list[int]:
    """Layers of every chunk in running order. Raises ConfigError when args do not divide the layers.

    segments  those that the pattern of a HybridModel names; one alone says nothing of stages
    """
    layers = args.get("num_layers")
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        raise ConfigError("args do not state the number of layers", where=where, got=f"num_layers={layers!r}")
    layout = args.get("pipeline_model_parallel_layout")
    laid_out = layout is not None and stages > 1
    if len(segments) > 1:
        counts = list(segments)
    else:
        counts = _laid_out(layout, where) if laid_out else _divided(args, layers, stages, chunks, where)
    if len(counts) != stages * chunks or sum(counts) != layers or min(counts) < 0:
        raise ConfigError(
            f"args do not cut {layers} layers into {stages} stages of {chunks} chunks",
            where=where,
            expected=f"{stages * chunks} counts that add up to {layers}",
            got=str(counts)[:200],
        )
    return counts


def _divided(args: Mapping[str, Any], layers: int, stages: int, chunks: int, where: str) -> list[int]:
    first = _count(args, "decoder_first_pipeline_num_layers", "num_layers_in_first_pipeline_stage")
    last = _count(args, "decoder_last_pipeline_num_layers", "num_layers_in_last_pipeline_stage")
    if stages == 1:
        first = last = None
    embedding = bool(args.get("account_for_embedding_in_pipeline_split")) and stages > 1
    loss = bool(args.get("account_for_loss_in_pipeline_split")) and stages > 1
    alone = bool(args.get("standalone_embedding_stage")) and stages > 1  # before 0.12: stage 0 has no layers
    if alone:
        first = 0
    middle = stages - (first is not None) - (last is not None)
    left = layers - (first or 0) - (last or 0) + embedding + loss
    each = left // middle if middle else 0
    of_stage = [each] * stages
    if first is not None:
        of_stage[0] = first
    if last is not None:
        of_stage[-1] = last
    if left != each * middle or any(count % chunks for count in of_stage):
        raise ConfigError(
            "the layers do not divide evenly",
            where=where,
            expected=f"{left} layers over {middle} stages of {chunks} chunks",
            cause="args of another run, or an unsupported way to distribute layers",
        )
    counts = [of_stage[i % stages] // chunks for i in range(stages * chunks)]
    counts[0] -= embedding
    counts[-1] -= loss
    return counts


def _laid_out(layout: object, where: str) -> list[int]:
    """Decoder layers of every chunk of a `pipeline_model_parallel_layout`: "Et*3|(tt|)*2,L" or lists of names."""
    if isinstance(layout, list) and all(isinstance(row, list) for row in layout):
        return [sum(_is_decoder(item) for item in row) for row in layout]
    if not isinstance(layout, str) or len(layout) > 10_000:
        raise ConfigError("the pipeline layout is not understood", where=where, got=type(layout).__name__)
    text = layout.replace(",", "")
    for pattern in (r"\(([^()]+)\)\*(\d{1,4})", r"(.)\*(\d{1,4})"):
        if sum(len(m[1]) * int(m[2]) for m in re.finditer(pattern, text)) > 10 * MAX_LAYERS:
            raise ConfigError("the pipeline layout has too many layers", where=where)
        text = re.sub(pattern, lambda m: m[1] * int(m[2]), text)
    if set(text) - set("EtmL|"):
        raise ConfigError("the pipeline layout is not understood", where=where, got=repr(layout[:80]))
    return [stage.count("t") for stage in text.split("|")]


def _is_decoder(item: object) -> bool:
    """LayerType.decoder, by name or as it is stored: LayerType(4)."""
    return isinstance(item, str) and item.strip().lower() in ("decoder", "t", "layertype(4)")


def _count(args: Mapping[str, Any], *names: str) -> int | None:
    found = next((args[name] for name in names if args.get(name) is not None), None)
    return found if isinstance(found, int) and 0 <= found <= MAX_LAYERS else None
