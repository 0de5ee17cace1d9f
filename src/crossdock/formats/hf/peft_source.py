"""LoRA adapters of Hugging Face PEFT as a source: adapter_config.json with adapter_model.safetensors or .bin.

Headers only. The tensors of the base that they change have the base's Hugging Face names; what these mean is for the
planner, which has the base. Names: peft 0.21.2, `utils/save_and_load.py: get_peft_model_state_dict`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from crossdock.errors import FormatError, NotACheckpointError, Problem
from crossdock.formats.adapter import Adapter, Form, StoredPair, StoredRows
from crossdock.formats.hf.adapter_config import FILE, AdapterConfig, checked
from crossdock.formats.hf.composite import HEAD, TEXT
from crossdock.formats.hf.source import read_json
from crossdock.formats.stored import Source, SourceFile, StoredTensor
from crossdock.formats.weight_file import tensors_in

WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX: Final = "base_model.model."
_A = re.compile(r"(?P<module>.+)\.(?:lora_A\.weight|lora_(?P<embedding>embedding)_A)\Z")
_NESTED: Final = ".base_layer"
_ROWS: Final = ".token_adapter.trainable_tokens_delta"
_MAGNITUDES: Final = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")


def sniff(path: Path) -> bool:
    """A folder with adapter_config.json, or a weight file of such a folder."""
    try:
        folder = path if path.is_dir() else path.parent
        return (folder / FILE).is_file() and (path.is_dir() or path.name in WEIGHTS)
    except OSError:
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open the folder of an adapter. Raises NotACheckpointError, FormatError, ConfigError, UnsafePickleError."""
    folder = path if path.is_dir() else path.parent
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise NotACheckpointError(
            f"{FILE} without {' or '.join(WEIGHTS)}", where=str(folder), fix="complete the folder of the adapter"
        )
    keys, where = read_json(folder / FILE)
    config = checked(keys, where)
    tensors = {tensor.name: tensor for tensor in tensors_in(file, 0)}
    if not tensors:
        raise FormatError("the adapter has no tensors", where=str(file))
    adapter = _Reader(config, {_name_in_base(name): one for name, one in tensors.items()}, str(file)).adapter()
    return Source(
        format="peft",
        root=path,
        files=(SourceFile.of(file),),
        tensors={("", name): tensor for name, tensor in tensors.items()},
        metadata=keys,
        metadata_at=where,
        notes={"pairs": str(len(adapter.pairs)), "base": adapter.base or "not named"},
        adapter=adapter,
    )


def _name_in_base(name: str) -> str:
    """A stored name as the text model of the base has it."""
    name = name.removeprefix(PREFIX)
    return TEXT.sub("model.", name, count=1) if TEXT.match(name) else name.removeprefix(HEAD)


class _Reader:
    """Sorts the tensors of one adapter. `tensors`: by their names in the base."""

    def __init__(self, config: AdapterConfig, tensors: Mapping[str, StoredTensor], where: str) -> None:
        self._config, self._tensors, self._where = config, tensors, where
        self._read: set[str] = set()
        self._problems: list[Problem] = []

    def adapter(self) -> Adapter:
        """What the adapter changes. Raises FormatError with every tensor that means nothing."""
        pairs = [pair for name in self._tensors if (match := _A.match(name)) for pair in self._pair(match)]
        rows: dict[str, StoredRows] = {}
        replaced: dict[str, StoredTensor] = {}
        for name, tensor in self._tensors.items():
            if name in self._read:
                continue
            if name.endswith(_ROWS):
                rows |= self._rows(name.removesuffix(_ROWS), tensor)
            elif "lora_" in name or ".token_adapter." in name:
                self._problem("the adapter has a tensor that no rule reads", name)
            else:  # modules_to_save, trained biases, and the layers below embeddings' pairs
                replaced[name.replace(f"{_NESTED}.", ".")] = tensor
        if not pairs and not rows and not replaced:
            self._problem("the adapter changes nothing: it has neither pairs nor other tensors", "")
        if self._problems:
            raise FormatError(self._problems)
        base = self._config.keys.get("base_model_name_or_path")
        restated = {name.replace(f"{_NESTED}.", ".") for name in self._tensors if name.endswith(f"{_NESTED}.weight")}
        return Adapter("hf", tuple(pairs), replaced, rows, base if isinstance(base, str) else "", frozenset(restated))

    def _pair(self, match: re.Match[str]) -> list[StoredPair]:
        name, wrapped, embedding = match[0], match["module"], match["embedding"]
        ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        a, b = self._tensors[name], self._tensors.get(f"{wrapped}.{ends[1]}")
        if b is None:
            self._problem(f"its other half {ends[1]} is missing", name)
            return []
        self._read |= {name, f"{wrapped}.{ends[1]}"}
        module = wrapped.replace(_NESTED, "")
        magnitudes = next((one for end in _MAGNITUDES if (one := self._tensors.get(wrapped + end)) is not None), None)
        self._read |= {wrapped + end for end in _MAGNITUDES}
        parameters = self._config.parameters_of(module)
        named = tuple(f"{module}.{parameter}" for parameter in parameters) or (f"{module}.weight",)
        form: Form = "embedding" if embedding else "experts" if parameters else "linear"
        rank = self._config.rank(module)
        if (
            len(a.shape) != 2
            or len(b.shape) != 2
            or a.shape[0] != b.shape[1]
            or (a.shape[0] != rank if form != "experts" else a.shape[0] % rank)
        ):
            self._problem(
                "the pair has another rank than the configuration states", name, str(rank), f"{a.shape}, {b.shape}"
            )
        if not self._config.wraps(module):
            self._problem("the configuration does not name this module, so PEFT would ignore the pair", name)
        if bool(self._config.keys.get("use_dora")) != (magnitudes is not None):
            self._problem("use_dora and lora_magnitude_vector contradict each other", name)
        if magnitudes is not None and embedding:
            self._problem("DoRA of an embedding is not read", name)
        return [StoredPair(named, a, b, form, rank, self._config.scale(module), magnitudes)]

    def _rows(self, module: str, tensor: StoredTensor) -> dict[str, StoredRows]:
        numbers = self._config.token_rows(module)
        if numbers is None or len(numbers) != tensor.shape[0] or len(set(numbers)) != len(numbers):
            self._problem(
                "trainable_token_indices does not fit the rows of this tensor",
                tensor.name,
                "different tokens, one a row",
                f"{None if numbers is None else len(numbers)} for {tensor.shape[0]} rows",
            )
            return {}
        return {f"{module}.weight": StoredRows(numbers, tensor)}

    def _problem(self, what: str, name: str, expected: str = "", got: str = "") -> None:
        self._problems.append(Problem(what, where=f"{self._where}: {name}", expected=expected, got=got))
