"""TensorRT-LLM checkpoints as a target: config.json and one safetensors file per rank.

Which ranks hold what is the layout's matter; here parts become files, and dtypes and keys are checked. Facts: as in
the package's docstring.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import PlanError
from crossdock.formats.companions import NAMES, companion_files_for
from crossdock.formats.hf.source import read_json
from crossdock.formats.safetensors import header_bytes
from crossdock.formats.stored import Source
from crossdock.formats.target import (
    PLAIN,
    Assembled,
    Encoding,
    Findings,
    RankFile,
    Ranks,
    Target,
    TargetFile,
    TensorSpec,
)
from crossdock.formats.trtllm import ranks as trtllm_ranks
from crossdock.formats.trtllm.config import ROUTER, config_json, nested, settings
from crossdock.formats.trtllm.options import TrtllmOptions
from crossdock.formats.trtllm.source import open_plain, sniff
from crossdock.model.config import ModelConfig

# of plain weights, which trtllm-build quantises itself
_BY_CONFIG = ("w8a16", "w4a16")
FP8 = "float8_e4m3fn"
# what config.json cannot say, for reading the folder back: kept in the rank files' __metadata__, which loaders skip
RECORDED = ("family", "tie_word_embeddings", "hidden_act", "sliding_window", "layer_types", "max_position_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


class TrtllmTarget(Target[TrtllmOptions]):
    """A folder that `trtllm-build` of TensorRT-LLM 0.8 to 1.2 loads."""

    name = "trtllm"
    layout = "trtllm"
    options_type = TrtllmOptions
    needs_training_scales = frozenset({"fp8"})
    own_names = ("config.json", "rank[0-9]*.safetensors", *NAMES)

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        """Return the dtypes that the target writes."""
        return PLAIN

    @classmethod
    def quantizations(cls) -> tuple[str, ...]:
        """Return the quantisations that the target writes."""
        return (*_BY_CONFIG, "fp8")

    def check(self) -> None:
        """How many ranks there can be, whatever the model."""
        trtllm_ranks.check(self.options)

    def ranks(self, config: ModelConfig) -> Ranks:
        """As asked for, if the model can be cut so."""
        found = trtllm_ranks.cut(config, self.options)
        algorithm = None if self.options.quantize is None else self.options.quantize.upper()
        cache = "FP8" if self.options.fp8_kv_cache else None
        return replace(found, settings={**found.settings, "quant_algo": algorithm, "kv_cache_quant_algo": cache})

    @classmethod
    def recorded(cls, output: Source) -> Mapping[str, Any]:
        """The ranks and the quantisation that the output's config.json names."""
        stated = settings(output.metadata)
        shared = stated["moe_expert_parallel"] > 1
        return {
            "tp": stated["tensor_parallel"],
            "pp": stated["pipeline_parallel"],
            "moe_tp": stated["moe_tensor_parallel"] if shared else 0,
            "moe_ep": stated["moe_expert_parallel"] if shared else 0,
            "use_parallel_embedding": stated["use_parallel_embedding"],
            "embedding_sharding_dim": stated["embedding_sharding_dim"],
            "quantize": stated["quant_algo"].lower() if isinstance(stated["quant_algo"], str) else None,
            "fp8_kv_cache": stated["kv_cache_quant_algo"] == "FP8",
        }

    @classmethod
    def reopen(cls, output: Path) -> Source | None:
        """A folder of rank files as it is stored: as a source its fp8 weights are read by their scales."""
        return open_plain(output) if sniff(output) else None

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """How the engine is built, and what newer versions want instead."""
        build = ["trtllm-build", "--checkpoint_dir", str(output), "--output_dir", f"{output}-engine"]
        hf = ["crossdock", "export", *source, "--to", "hf", "-o", f"{output}-hf"]
        return (
            f"{shlex.join(build)}   # TensorRT-LLM 0.8 to 1.2, on a machine with the GPU",
            f"{shlex.join(hf)}   # TensorRT-LLM 1.3 and later load Hugging Face folders",
        )

    def encoding(self, tensor: TensorSpec, found: Findings) -> Encoding:
        """The dtype asked for, or that of most of the source; float32 for what the layout's [encoding] lists."""
        if self.options.quantize == "fp8" and found.is_listed("fp8", tensor.name):
            if tensor.scales is None:
                raise PlanError(
                    "the source has no fp8 training scales for it", where=tensor.name,
                    expected="a Megatron checkpoint with scales in _extra_state (delayed scaling), or an FP8 folder",
                    fix="export without -q, and let ModelOpt calibrate",
                )  # fmt: skip
            scale_blocks = ScaleBlocks.whole(tensor.shape, len(tensor.scales))
            return Encoding(FP8, scale_blocks=scale_blocks, static_scales=tuple(weight for _, weight in tensor.scales))
        fixed = found.fixed.get(tensor.name)
        if fixed is not None:
            return Encoding(fixed)
        if found.is_listed("f32", tensor.name):
            return Encoding("float32")
        if self.options.dtype != "auto":
            return Encoding(self.options.dtype)
        if found.source_dtype in PLAIN:
            return Encoding(found.source_dtype)
        return Encoding("float32", f"{tensor.dtype} tensors are decoded to float32; --dtype chooses another")

    def extra(self, tensors: Sequence[TensorSpec], found: Findings) -> Sequence[tuple[TensorSpec, bytes]]:
        """The scales of fp8 weights and of the fp8 cache; buffers that TensorRT-LLM computes are left to it."""
        scales: list[tuple[str, tuple[int, ...], list[float], str]] = []
        for tensor in tensors:
            stem = tensor.name.removesuffix(".weight")
            if tensor.scales is not None and tensor.dtype == FP8:
                weights = [weight for _, weight in tensor.scales]
                largest = max(activation for activation, _ in tensor.scales)
                shape = (1,) if len(tensor.shape) == 2 else (len(weights), 1)
                scales.append((f"{stem}.activation_scaling_factor", (1,), [largest], tensor.part))
                scales.append((f"{stem}.weights_scaling_factor", shape, weights, tensor.part))
            if self.options.fp8_kv_cache and tensor.name.endswith(".attention.qkv.weight"):
                scales.append((f"{stem.removesuffix('.qkv')}.kv_cache_scaling_factor", (1,), [1.0], tensor.part))
        return [
            (TensorSpec(name, shape, "float32", part), np.array(n, np.float32).tobytes())
            for name, shape, n, part in scales
        ]

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """A file per rank in the order of the tensors, and the configuration."""
        config = found.config
        out = nested({key: value for key, (_, value) in found.header.items()})
        stated = settings(out)
        tp, ep = stated["tensor_parallel"], stated["moe_expert_parallel"]
        held: list[list[int]] = [[] for _ in range(tp * stated["pipeline_parallel"])]
        for number, tensor in enumerate(tensors):
            held[trtllm_ranks.rank_of(tensor.part, tp, ep)].append(number)
        routers = [tensor for tensor in tensors if tensor.name.endswith(ROUTER)]
        own = self.options.dtype if self.options.dtype != "auto" else routers[0].before if routers else ""
        telling = {name: getattr(config, name) for name in RECORDED} | ({"router_dtype": own} if routers else {})
        recorded = json.dumps(telling, separators=(",", ":"))
        files: list[TargetFile] = []
        rank_files: list[RankFile] = []
        places = [(0, 0)] * len(tensors)
        spans = trtllm_ranks.layer_ranges(config.num_hidden_layers, stated["pipeline_parallel"])
        for rank, numbers in enumerate(held):
            mine = [tensors[number] for number in numbers]
            header, offsets, total = header_bytes(
                [(t.name, t.dtype, t.shape) for t in mine], {"format": "pt", "crossdock": recorded}
            )
            for number, offset in zip(numbers, offsets, strict=True):
                places[number] = (rank, offset)
            files.append(TargetFile(trtllm_ranks.file_name(rank), total, header))
            rank_files.append(_rank_file(rank, mine, spans[rank // tp], config, tp))
        content = config_json(out)
        files.append(TargetFile("config.json", len(content), content))
        companion_files = companion_files_for(self.options.tokenizer, found)
        return Assembled(
            (*files, *companion_files.files),
            tuple(places),
            (
                *companion_files.warnings,
                "TensorRT-LLM 1.3 and later load Hugging Face folders (--to hf); this is for 0.8 to 1.2",
            ),
            json.loads(content),
            frozenset() if self.options.allow_overflow else frozenset({"overflow"}),
            tuple(rank_files),
        )

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The keys of config.json, as they stand there."""
        return read_json(output / "config.json")[0]


def _rank_file(
    rank: int, tensors: Sequence[TensorSpec], layers: tuple[int, int], config: ModelConfig, tp: int
) -> RankFile:
    rows = {tensor.name: tensor.shape[0] for tensor in tensors}
    fewest = min((n for n in map(config.kv_heads, range(*layers)) if n), default=tp)
    return RankFile(
        trtllm_ranks.file_name(rank),
        len(tensors),
        sum(encoded_size(codecs.get(t.dtype), math.prod(t.shape)) for t in tensors),
        layers,
        rows.get("transformer.vocab_embedding.weight", 0),
        rows.get("lm_head.weight", 0),
        1 if fewest < tp else 0,
    )
