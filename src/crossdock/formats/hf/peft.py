"""LoRA adapters as a folder that Hugging Face's PEFT loads: adapter_config.json and adapter_model.safetensors.

Keys and names: peft 0.17, `LoraConfig` and `set_peft_model_state_dict`. Each matrix has the alpha that makes its
scale 1, by pattern, since ranks may differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from crossdock.errors import PlanError
from crossdock.formats.hf.source import read_json
from crossdock.formats.options import Options
from crossdock.formats.safetensors import header_bytes, read_header
from crossdock.formats.stored import Extent, Source, SourceFile, StoredTensor
from crossdock.formats.target import Assembled, Findings, PairForm, Target, TargetFile, TensorSpec

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_RANK_FIRST = (".lora_A.weight", ".lora_embedding_A")


_EMBEDDING: Final = re.compile(r"(\A|\.)(embed_tokens|wte|wpe|embed_in|embeddings|word_embeddings)\.weight\Z")


class PeftTarget(Target[Options]):
    """A folder for `PeftModel.from_pretrained`: float32, in which adapters were trained."""

    name = "peft"
    layout = "peft"
    pairs_in = "hf"
    options_type = Options

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """Return the line of Python that uses the adapter."""
        return (f'peft.PeftModel.from_pretrained(base_model, "{output}")',)

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """The weights in one file, and the configuration with a rank for each matrix."""
        if found.alphas:
            return self._by_name(tensors, found)
        ranks = {
            tensor.name.removeprefix(_PREFIX).removesuffix(end): tensor.shape[0]
            for tensor in tensors for end in _RANK_FIRST if tensor.name.endswith(end)
        }  # fmt: skip
        alphas: Mapping[str, float] = ranks  # the scale is 1
        base = {key: value for key, (_, value) in found.header.items()}
        return _assembled(tensors, base | _config(ranks, alphas, [name.rpartition(".")[2] for name in ranks]))

    def _by_name(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """The same for pairs on tensors of a model's Hugging Face layout."""
        modules = {name: name.removesuffix(".weight") for name in found.alphas}
        alphas = {modules[name]: alpha for name, alpha in found.alphas.items()}
        ranks = {
            tensor.name.removeprefix(_PREFIX).removesuffix(end): tensor.shape[0]
            for tensor in tensors for end in _RANK_FIRST if tensor.name.endswith(end)
        }  # fmt: skip
        keys = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
        return _assembled(tensors, keys | _config(ranks, alphas, [name.rpartition(".")[2] for name in ranks]))

    @classmethod
    def pair_form(cls, name: str) -> PairForm:
        """Embeddings have matrices of other names, as parameters rather than layers."""
        return PairForm.RANK_FIRST if _EMBEDDING.search(name) else PairForm.LINEAR

    @classmethod
    def pair_names(cls, name: str) -> tuple[str, str]:
        """The module's name with lora_A and lora_B."""
        module = _PREFIX + name.removesuffix(".weight")
        if _EMBEDDING.search(name):
            return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
        return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

    @classmethod
    def demand_place(cls, name: str) -> None:
        """Raises PlanError for a tensor that is not the weight of a module."""
        if not name.endswith(".weight"):
            raise PlanError("peft's pairs are of modules, and this is a parameter", where=name)

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


def _config(ranks: Mapping[str, int], alphas: Mapping[str, float], modules: Sequence[str]) -> dict[str, Any]:
    """The keys of LoraConfig: the most frequent rank and alpha, and by pattern what differs from them."""
    rank, alpha = (
        max(set(ranks.values()), key=[*ranks.values()].count),
        max(set(alphas.values()), key=[*alphas.values()].count),
    )
    return {
        "base_model_name_or_path": None, "inference_mode": True, "bias": "none", "lora_dropout": 0.0,
        "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "modules_to_save": None,
        "target_modules": sorted(set(modules)), "r": rank, "lora_alpha": _whole(alpha),
        "rank_pattern": {name: one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {name: _whole(one) for name, one in alphas.items() if one != alpha},
    }  # fmt: skip


def _whole(number: float) -> float:
    """The same as a whole number, where it is one."""
    return int(number) if number == int(number) else number


def _assembled(tensors: Sequence[TensorSpec], keys: Mapping[str, Any]) -> Assembled:
    text = json.dumps(keys, indent=2).encode() + b"\n"
    header, offsets, total = header_bytes([(t.name, t.dtype, t.shape) for t in tensors], {"format": "pt"})
    files = (TargetFile(_WEIGHTS, total, header), TargetFile(_CONFIG, len(text), text))
    return Assembled(files, tuple((0, at) for at in offsets), (), keys)
