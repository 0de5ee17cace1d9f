"""FP8 in Hugging Face folders as a target writes it: which weights, with which scales, and what the configuration says.

`fp8` is one scale a row and none for the input (each token gets its own at run time), `fp8_static` one scale a weight
and one for its input, from the source. Reads nothing. Facts: NVIDIA ModelOpt a2fbac7b (`export/unified_export_hf.py`,
`export/convert_hf_config.py`), vLLM 00155cde `quantization/modelopt.py`, TensorRT-LLM 2edf354d.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import PlanError, UsageError
from crossdock.formats.hf.options import HfOptions
from crossdock.formats.target import Encoding, Findings, TensorSpec

FP8 = "float8_e4m3fn"
# name for -q -> quant_algo
ALGORITHMS: Mapping[str, str] = MappingProxyType({"fp8": "FP8_PER_CHANNEL_PER_TOKEN", "fp8_static": "FP8"})
FILE = "hf_quant_config.json"
# vLLM and SGLang ask for this name; the version is that of the form, with who wrote it
_PRODUCER = MappingProxyType({"name": "modelopt", "version": "0.47.0+crossdock"})
_EXPERTS = ".experts."
_KEPT = (
    "experts are not quantised: vLLM and TensorRT-LLM load no scales by row for them (-q fp8_static has one a weight)"
)


def encoding(tensor: TensorSpec, options: HfOptions, found: Findings) -> Encoding | None:
    """How a weight of a linear layer becomes fp8; None for what stays. Raises UsageError."""
    if options.quantize not in ALGORITHMS or not found.is_listed("fp8", tensor.name):
        return None
    if options.quantize == "fp8_static":
        return (
            None
            if tensor.scales is None
            else Encoding(FP8, scale_blocks=ScaleBlocks.whole(tensor.shape), static_scales=(tensor.scales[0][1],))
        )
    if _EXPERTS in tensor.name:
        return None
    height, width = tensor.shape
    scale_blocks = ScaleBlocks(1, width, height, width)
    if found.is_listed("fp8_columns", tensor.name):
        scale_blocks = ScaleBlocks(height, 1, height, width)
    return Encoding(FP8, scale_blocks=scale_blocks, scales=f"{tensor.name}_scale")


def static_scales(
    tensors: Iterable[TensorSpec], options: HfOptions, findings: Findings
) -> list[tuple[TensorSpec, bytes]]:
    """The scales of static fp8, and 1 for an fp8 cache, as tensors with their bytes."""
    found = []
    cached = set()
    for tensor in tensors:
        if options.quantize == "fp8_static" and tensor.dtype == FP8 and tensor.scales is not None:
            found += [(f"{tensor.name}_scale", tensor.scales[0][1])]
            found += [(f"{tensor.name.removesuffix('weight')}input_scale", tensor.scales[0][0])]
        for letter in "kv" if options.fp8_kv_cache else "":
            if findings.is_listed(f"cache_{letter}", tensor.name):
                cached.add(letter)
                found.append((f"{tensor.name.removesuffix('weight')}{letter}_scale", 1.0))
    if options.fp8_kv_cache and len(cached) < 2:
        raise UsageError("--fp8-kv-cache requires separate weights of keys and values, which this family lacks")
    return [(TensorSpec(name, (), "float32"), np.float32(scale).tobytes()) for name, scale in found]


def warnings(tensors: Sequence[TensorSpec], options: HfOptions) -> tuple[str, ...]:
    """What of the model is not fp8 although it could be. Raises PlanError when nothing is."""
    if not any(tensor.dtype == FP8 for tensor in tensors):
        static = options.quantize == "fp8_static"
        raise PlanError(
            "the source has no fp8 training scales" if static else "no weight can be quantised to fp8",
            expected="a Megatron checkpoint with scales in _extra_state (delayed scaling), or an FP8 folder"
            if static else "",
            fix="use -q fp8, which needs no such scales" if static else "",
        )  # fmt: skip
    stay = excluded(tensors)
    halved = [t.name for t in tensors if t.dtype == FP8 and _EXPERTS in t.name and _fits(t.name, stay)]
    if halved:
        raise PlanError(
            "only some experts of a layer have fp8 training scales", where=halved[0].partition(_EXPERTS)[0],
            got=", ".join(halved[:4]), fix="use -q fp8, which needs no such scales",
        )  # fmt: skip
    experts = options.quantize == "fp8" and any(_EXPERTS in tensor.name for tensor in tensors)
    return (_KEPT,) if experts else ()


def excluded(tensors: Iterable[TensorSpec]) -> list[str]:
    """Modules whose weights stay: `lm_head` always, for it may be tied; all experts of a layer as one."""
    found = {"lm_head": True}
    for tensor in tensors:
        if tensor.dtype != FP8 and len(tensor.shape) > 1 and tensor.name.endswith(".weight"):
            module = tensor.name.removesuffix(".weight")
            before, expert, _ = module.partition(_EXPERTS)
            if expert:  # by substring for some loaders, by wildcard for others
                found |= {f"{before}{_EXPERTS[:-1]}": True, f"{before}{_EXPERTS[:-1]}*": True}
            else:
                found[module] = True
    return list(found)


def configurations(tensors: Sequence[TensorSpec], options: HfOptions) -> tuple[dict[str, Any], bytes]:
    """The `quantization_config` of config.json, and hf_quant_config.json whole."""
    assert options.quantize is not None
    algorithm, ignore = ALGORITHMS[options.quantize], excluded(tensors)
    number = {"dynamic": False, "num_bits": 8, "type": "float"}
    group: dict[str, Any] = {"input_activations": number, "weights": number, "targets": ["Linear"]}
    if options.quantize == "fp8":
        group |= {"input_activations": number | {"dynamic": True, "strategy": "token"},
                  "weights": number | {"strategy": "channel"}}  # fmt: skip
    inline: dict[str, Any] = {
        "config_groups": {"group_0": group}, "ignore": ignore, "quant_algo": algorithm, "producer": dict(_PRODUCER),
        "quant_method": "modelopt",
    }  # fmt: skip
    if options.fp8_kv_cache:
        inline["kv_cache_scheme"] = number
    whole = {
        "producer": dict(_PRODUCER),
        "quantization": {
            "quant_algo": algorithm, "kv_cache_quant_algo": "FP8" if options.fp8_kv_cache else None,
            "exclude_modules": ignore,
        },
    }  # fmt: skip
    return inline, json.dumps(whole, indent=4).encode() + b"\n"


def served_by(algorithm: object, folder: str) -> str:
    """The commands that serve a folder. SGLang's loader has no scales by row."""
    commands = f"trtllm-serve {folder}   (TensorRT-LLM 1.3 and later), or: vllm serve {folder}"
    if algorithm != ALGORITHMS["fp8_static"]:
        return commands
    return f"{commands}, or: python -m sglang.launch_server --model-path {folder} --quantization modelopt"


def recorded(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options an output's `quantization_config` says."""
    quantization = metadata.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return {}
    names = {algorithm: name for name, algorithm in ALGORITHMS.items()}
    return {
        "quantize": names.get(str(quantization.get("quant_algo"))),
        "fp8_kv_cache": bool(quantization.get("kv_cache_scheme")),
    }


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
