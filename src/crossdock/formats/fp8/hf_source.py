"""FP8 in Hugging Face folders as they are read: every weight with the scales stored beside it, whoever wrote them.

ModelOpt's FP8, FP8_PER_CHANNEL_PER_TOKEN and FP8_PB_WO, DeepSeek's and transformers' `fp8` (blocks), float-quantized
of compressed-tensors and fbgemm_fp8 follow one rule: value = code * scale. Reads headers and single numbers. Facts: as
in `hf.fp8`; transformers 5.23 `finegrained_fp8.py`; compressed-tensors `float_quantized.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import ConfigError, FormatError, Problem
from crossdock.formats.fp8.stored import numbers, scaled
from crossdock.formats.stored import Pair, Source, StoredTensor, TrainingScales

_E4M3 = "float8_e4m3fn"
_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
_SCALES = ("_scale", "_scale_inv")  # behind a weight's name; both are factors
_INPUTS = ("input_scale", "activation_scale")  # of ModelOpt and compressed-tensors; of transformers' `fp8` and Mistral
_BESIDE = {
    ".input_scale": "input scale of a layer: only static fp8 outputs can store it",
    ".activation_scale": "input scale of a layer: only static fp8 outputs can store it",
    ".input_scale_ub": "input bound of a layer: an engine setting",
    ".k_scale": "scale of an fp8 KV cache: an engine setting",
    ".v_scale": "scale of an fp8 KV cache: an engine setting",
}


def with_scales(source: Source) -> Source:
    """`source` with its fp8 weights' scales found, so that they are read as what they stand for.

    Raises ConfigError for other quantisations, FormatError for weights without scales or scales of no known shape.
    """
    quantization = source.metadata.get("quantization_config")
    if not quantization:
        return source
    _known(quantization, source.metadata_at)
    fp8 = {key: tensor for key, tensor in source.tensors.items() if tensor.dtype == _E4M3}
    found = {key: next((s for end in _SCALES if (s := source.tensors.get(("", key[1] + end)))), None) for key in fp8}
    lacking = [name for (_, name), scale in found.items() if scale is None]
    if lacking or not fp8:
        raise FormatError(
            f"{len(lacking)} fp8 weights have no scales" if fp8 else "no fp8 weights found",
            where=str(source.root), expected=f"tensors called {lacking[0]}_scale" if lacking else "as config.json says",
            got=", ".join(lacking[:5]), cause="an unfinished download, or a layout that crossdock does not support",
        )  # fmt: skip
    pairs = {key: (fp8[key], scale) for key, scale in found.items() if scale is not None}
    transposed = any(_only_columns(*pair) for pair in pairs.values())
    block = _block(quantization)
    weights: dict[tuple[str, str], StoredTensor] = {}
    problems: list[Problem] = []
    for key, (tensor, scale) in pairs.items():
        try:
            scale_blocks = _scale_blocks(tensor.shape, scale.shape, transposed, block)
            expected = f"one for all of {list(tensor.shape)}, for each row or for each block of {list(block)}"
            weights[key] = scaled(tensor, scale, scale_blocks, expected)
        except FormatError as error:
            problems += error.problems
    if problems:
        raise FormatError(problems[:20])
    used = {("", scale.name) for _, scale in pairs.values()}
    beside = {key: end for key in source.tensors for end in _BESIDE if key[1].endswith(end)}
    tensors = {key: weights.get(key, t) for key, t in source.tensors.items() if key not in used and key not in beside}
    counts = {end: sum(1 for its in beside.values() if its == end) for end in beside.values()}
    return replace(
        source,
        tensors=tensors,
        metadata={key: value for key, value in source.metadata.items() if key != "quantization_config"},
        skipped={**source.skipped, **{f"*{end} ({n} tensors)": _BESIDE[end] for end, n in counts.items()}},
        scales=partial(_static, source, weights),
        notes={**source.notes, "fp8": f"{len(weights)} weights with scales ({_called(quantization)})"},
    )


def _called(quantization: Any) -> str:
    if not isinstance(quantization, Mapping):
        return str(quantization)[:40]
    return " ".join(str(quantization[key])[:40] for key in ("quant_method", "quant_algo") if quantization.get(key))


def _known(quantization: Any, where: str) -> None:
    method = str(quantization.get("quant_method", "")).replace("_", "-") if isinstance(quantization, Mapping) else ""
    known = (
        (method == "modelopt" and str(quantization.get("quant_algo")).upper() in _ALGORITHMS)
        or (method == "fp8" and quantization.get("fmt", "e4m3") == "e4m3")
        or (method == "compressed-tensors" and quantization.get("format") == "float-quantized")
        or method == "fbgemm-fp8"
    )
    if not known:
        raise ConfigError(
            f"the weights are quantised ({_called(quantization)}), which crossdock does not read", where=where,
            expected="none, or fp8 (e4m3) of ModelOpt, DeepSeek, transformers, compressed-tensors or fbgemm",
            fix="pass the folder of the unquantised model",
        )  # fmt: skip


def _block(quantization: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of a block, where scales are of blocks."""
    size = quantization.get("weight_block_size") or [128, 128]
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise ConfigError("not a block size", where="weight_block_size", got=repr(size)[:80])
    return size[0], size[1]


def _only_columns(tensor: StoredTensor, scale: StoredTensor) -> bool:
    """Whether scales can only be of columns: such a folder has matrices as [in, out] (GPT-2)."""
    return len(tensor.shape) == 2 and scale.shape == tensor.shape[1:] != tensor.shape[:1] and scale.shape != (1,)


def _scale_blocks(
    shape: tuple[int, ...], scales: tuple[int, ...], transposed: bool, block: tuple[int, int]
) -> ScaleBlocks | None:
    """The blocks of a matrix whose scales have the shape `scales`; None for no known form."""
    if len(shape) != 2 or 0 in shape:
        return None
    height, width = shape
    if all(n == 1 for n in scales):
        return ScaleBlocks(height, width, height, width)
    if transposed:
        return ScaleBlocks(height, 1, height, width) if scales == (width,) else None
    if scales in ((height,), (height, 1)):
        return ScaleBlocks(1, width, height, width)
    scale_blocks = ScaleBlocks(*block, height, width)
    if tuple(n for n in scales if n != 1) != tuple(n for n in (-(-height // block[0]), scale_blocks.across) if n != 1):
        return None
    return scale_blocks


def _static(source: Source, weights: Mapping[tuple[str, str], StoredTensor]) -> TrainingScales:
    """Scale of the input and of the weight, of weights that have one each."""
    out: dict[tuple[str, str], dict[tuple[int, ...], Pair]] = {}
    for (part, name), tensor in weights.items():
        beside = (source.tensors.get((part, name.removesuffix("weight") + end)) for end in _INPUTS)
        input_scale = next((tensor for tensor in beside if tensor is not None), None)
        scaling = tensor.scaling
        if (
            input_scale is None
            or scaling is None
            or scaling.scale_blocks.count != 1
            or math.prod(input_scale.shape) != 1
        ):
            continue
        (activation,), (weight,) = numbers(source, input_scale), numbers(source, source.tensors[part, scaling.name])
        out[part, name] = {(): (activation, weight)}
    return TrainingScales(out)
