"""The recorded cases of tests/data/families/cases: a tiny model of every text family of transformers and llama.cpp.

A case keeps what cannot be made here: config.json, the list of tensors, transformers' logits, and the keys and tensors
that llama.cpp's own converter writes. Its weights are made from its seed (`made_weights`). `record_cases` made them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from made_weights import Stored, Values, values, write_safetensors
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[1] / "data/families/cases"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as the converter wrote it: shape with the fastest axis first, ggml's type, sha256 of its bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    sha256: str


@dataclass(frozen=True)
class Recorded:
    """What llama.cpp's converter wrote in f32, without tokenizer.

    keys     name -> (type, value), where an array's type is "ARRAY:UINT32"
    encoded  another outtype ("f16", "bf16", "q8_0") -> name of a tensor -> (type, first 8 digits of the sha256)
    """

    keys: Mapping[str, tuple[str, Any]]
    tensors: tuple[GgufTensor, ...]
    encoded: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How the references of a case were made, for `record_cases`.

    seed        of weights and tokens
    auto        the class of transformers that loads it
    raw         the converter reads config.json as it is, not through AutoConfig
    no_mtp      the converter ran with --no-mtp
    vocab_file  a tokenizer.json of as many entries as the vocabulary lay beside it for the converter
    without     parameters that are zero where llama.cpp's logits are compared, a known limit of llama.cpp
    tolerance   of llama.cpp's logits, absolute; None where the converter cannot read the model (`why`)
    """

    seed: int = 0
    auto: str = "AutoModelForCausalLM"
    raw: bool = False
    no_mtp: bool = False
    vocab_file: bool = False
    without: str = ""
    tolerance: float | None = 1e-4
    why: str = ""


@dataclass(frozen=True)
class Case:
    """One recorded model.

    config   config.json
    tokens   int64 [1, n]; logits: float32 [1, n, vocabulary], by transformers in float32 with eager attention
    gguf     the converter's file, None where it cannot read the model
    versions of the programs that made the references; difference: of llama.cpp's logits, at the most
    """

    name: str
    config: Mapping[str, Any]
    tensors: tuple[Stored, ...]
    recipe: Recipe
    tokens: NDArray[np.int64] = field(repr=False)
    logits: NDArray[np.float32] = field(repr=False)
    gguf: Recorded | None
    versions: Mapping[str, str]
    difference: float | None

    @property
    def model_type(self) -> str:
        """The model type that config.json names."""
        return str(self.config["model_type"])

    def state(self) -> dict[str, Values]:
        """Every tensor of the checkpoint."""
        return {tensor.name: values(tensor, self.recipe.seed) for tensor in self.tensors}

    def write(self, folder: Path) -> Path:
        """Makes the Hugging Face folder: config.json and model.safetensors."""
        return write_folder(folder, self.config, self.state())


def write_folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Values]) -> Path:
    """A Hugging Face folder of one safetensors file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_safetensors(folder / "model.safetensors", state)
    return folder


@functools.cache
def names() -> tuple[str, ...]:
    """Every recorded case."""
    return tuple(sorted(file.name.removesuffix(".tar.xz") for file in FOLDER.glob("*.tar.xz")))


@functools.cache
def case(name: str) -> Case:
    """The recorded case of this name."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        parts = {member.name: archive.extractfile(member).read() for member in archive}
    about, gguf = json.loads(parts["case.json"]), json.loads(parts["gguf.json"])
    return Case(
        name,
        json.loads(parts["config.json"]),
        tuple(
            Stored(tensor, dtype, tuple(shape), kind, tuple(constant))
            for tensor, dtype, shape, kind, constant in json.loads(parts["tensors.json"])
        ),
        Recipe(**about["recipe"]),
        np.load(io.BytesIO(parts["tokens.npy"])),
        np.load(io.BytesIO(parts["logits.npy"])),
        None if gguf is None else recorded(gguf),
        about["versions"],
        about["difference"],
    )


def recorded(listing: Mapping[str, Any]) -> Recorded:
    """Of {"keys": {name: [type, value]}, "tensors": [[name, shape, type, sha256]], "encoded": {..: {name: [..]}}}."""
    return Recorded(
        {name: (kind, value) for name, (kind, value) in listing["keys"].items()},
        tuple(GgufTensor(name, tuple(shape), kind, digest) for name, shape, kind, digest in listing["tensors"]),
        {
            outtype: {name: (kind, digest) for name, (kind, digest) in tensors.items()}
            for outtype, tensors in listing.get("encoded", {}).items()
        },
    )


def listed(path: Path) -> Recorded:
    """Keys and tensors of a GGUF, without the general keys that say who made it."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {
        name: (":".join(kind.name for kind in entry.types), entry.contents())
        for name, entry in reader.fields.items()
        if not name.startswith(("GGUF.", "general.")) or name in ("general.architecture", "general.file_type")
    }
    return Recorded(
        keys,
        tuple(
            GgufTensor(
                t.name,
                tuple(int(n) for n in t.shape),
                t.tensor_type.name,
                hashlib.sha256(t.data.tobytes()).hexdigest(),
            )
            for t in reader.tensors
        ),
    )


def save(made: Case) -> None:
    """Keeps a case."""
    text: dict[str, Any] = {
        "case.json": {"recipe": asdict(made.recipe), "versions": made.versions, "difference": made.difference},
        "config.json": made.config,
        "tensors.json": [[t.name, t.dtype, t.shape, t.kind, t.constant] for t in made.tensors],
        "gguf.json": made.gguf
        and {
            "keys": made.gguf.keys,
            "tensors": [[t.name, t.shape, t.type, t.sha256] for t in made.gguf.tensors],
            "encoded": made.gguf.encoded,
        },
    }
    parts = {name: json.dumps(part, separators=(",", ":")).encode() for name, part in text.items()}
    for name, array in (("tokens.npy", made.tokens), ("logits.npy", made.logits)):
        stream = io.BytesIO()
        np.save(stream, array)
        parts[name] = stream.getvalue()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tarfile.open(FOLDER / f"{made.name}.tar.xz", "w:xz") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
