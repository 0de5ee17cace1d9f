"""LoRA adapters as a folder that Hugging Face's PEFT loads: adapter_config.json and adapter_model.safetensors.

Keys and names: peft 0.17, `LoraConfig` and `set_peft_model_state_dict`. Each matrix has the alpha that makes its
scale 1, by pattern, since ranks may differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdock.formats.hf.source import read_json
from crossdock.formats.options import Options
from crossdock.formats.safetensors import header_bytes, read_header
from crossdock.formats.stored import Extent, Source, SourceFile, StoredTensor
from crossdock.formats.target import Assembled, Findings, Target, TargetFile, TensorSpec

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_RANK_FIRST = (".lora_A.weight", ".lora_embedding_A")


class PeftTarget(Target[Options]):
    """A folder for `PeftModel.from_pretrained`: float32, in which adapters were trained."""

    name = "peft"
    layout = "peft"
    options_type = Options

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """Return the line of Python that uses the adapter."""
        return (f'peft.PeftModel.from_pretrained(base_model, "{output}")',)

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """The weights in one file, and the configuration with a rank for each matrix."""
        ranks = {
            tensor.name.removeprefix(_PREFIX).removesuffix(end): tensor.shape[0]
            for tensor in tensors for end in _RANK_FIRST if tensor.name.endswith(end)
        }  # fmt: skip
        usual = max(set(ranks.values()), key=list(ranks.values()).count)
        other = {name: rank for name, rank in ranks.items() if rank != usual}
        keys = {key: value for key, (_, value) in found.header.items()} | {
            "base_model_name_or_path": None, "inference_mode": True, "bias": "none", "lora_dropout": 0.0,
            "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "modules_to_save": None,
            "target_modules": sorted({name.rpartition(".")[2] for name in ranks}),
            "r": usual, "lora_alpha": usual, "rank_pattern": other, "alpha_pattern": other,
        }  # fmt: skip
        text = json.dumps(keys, indent=2).encode() + b"\n"
        header, offsets, total = header_bytes([(t.name, t.dtype, t.shape) for t in tensors], {"format": "pt"})
        files = (TargetFile(_WEIGHTS, total, header), TargetFile(_CONFIG, len(text), text))
        return Assembled(files, tuple((0, at) for at in offsets), (), keys)

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """Return the keys of the output's adapter_config.json."""
        return read_json(output / _CONFIG)[0]

    @classmethod
    def reopen(cls, output: Path) -> Source | None:
        """A folder with both files."""
        weights = output / _WEIGHTS
        if not weights.is_file() or not (output / _CONFIG).is_file():
            return None
        tensors = {}
        for name, one in read_header(weights).tensors.items():
            extent = Extent(0, one.begin, one.end - one.begin, (0,) * len(one.shape), one.shape)
            tensors["", name] = StoredTensor(name, one.shape, one.codec, (extent,))
        return Source(cls.name, output, (SourceFile.of(weights),), tensors, {}, str(output / _CONFIG))
