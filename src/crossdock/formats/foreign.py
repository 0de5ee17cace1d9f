"""Checkpoints of other programs, and what is not a checkpoint at all: known by file names, each with a way out.

Looks at names, and at the first bytes of small files; opens nothing. Reads no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from crossdock.errors import NotACheckpointError

_MOST: Final = 100_000
_URL: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*):/{1,2}(?=[^/])", re.IGNORECASE)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_POINTER: Final = b"version https://git-lfs"
_HEAVY: Final = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".model", ".distcp", ".nemo")
# files of which one makes a folder a checkpoint that is read
_READ: Final = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|\.metadata|metadata\.json|common\.pt"
    r"|latest_checkpointed_iteration\.txt|iter_\d+|mp_rank_\d+(_\d+)*|rank\d+\.safetensors"
)
_RANKS: Final = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt\Z")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A sign among the names of a folder (or the name of a file), what it is a sign of, and what to do."""

    sign: str
    what: str
    fix: str


_DEEPSPEED = "in that folder: python zero_to_fp32.py . OUT --safe_serialization, then pass OUT with --config"
_LAYERS = "convert it with its own program (GPT-NeoX: tools/ckpts/convert_neox_to_hf.py) and pass the result"
_MEMBERS: Final = (
    _Kind(r"layer_\d+-model_\d+-model_states\.pt", "DeepSpeed pipeline layer files, as GPT-NeoX saves them",
          _LAYERS),
    _Kind(r"zero_to_fp32\.py|(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_(optim|model)_states\.pt",
          "a DeepSpeed ZeRO checkpoint", _DEEPSPEED),
    _Kind(r"model_weights", "an unpacked NeMo 1 checkpoint",
          "pass the folder model_weights in it, with --config and the model's Hugging Face config.json"),
    _Kind(r"checkpoint_metadata\.json", "a nanotron checkpoint",
          "convert it with nanotron's examples/llama/convert_nanotron_to_hf.py and pass the result"),
    _Kind(r"consolidated\.\d+\.pth", "Meta's original Llama format",
          "use the Hugging Face version of the model, or make it with transformers' convert_llama_weights_to_hf.py"),
    _Kind(r"consolidated(-\d+-of-\d+)?\.safetensors", "Mistral's original format (mistral-inference)",
          "use the Hugging Face version of the model (config.json and model*.safetensors, in the same repository)"),
    _Kind(r"tekken\.json", "Mistral's original format (mistral-inference)",
          "use the Hugging Face version of the model (config.json and model*.safetensors, in the same repository)"),
    _Kind(r"snapshots", "a cache folder of the Hub", "pass the folder of the snapshot: snapshots/REVISION in it"),
    _Kind(r"pytorch_model_fsdp_\d+", "an Accelerate training checkpoint, with the model one folder down",
          "pass the folder pytorch_model_fsdp_0 in it, with --config"),
    _Kind(r"pytorch_model_fsdp\.bin", "an Accelerate training checkpoint", "pass the file in it, with --config"),
    _Kind(r"rank\d+\.engine", "TensorRT engines, whose weights cannot be read back",
          "pass the checkpoint that they were built from"),
    _Kind(r"flax_model.*\.msgpack", "a Flax model", "load it in transformers (from_flax=True) and save_pretrained"),
    _Kind(r"tf_model.*\.h5", "a TensorFlow model", "load it in transformers (from_tf=True) and save_pretrained"),
)  # fmt: skip
_NESTED: Final = re.compile(r"global_step\d+\Z|step[-_]?\d+\Z|\d+\Z")  # folders of one step, below a run's folder


def refuse_missing(path: Path) -> None:
    """Raise NotACheckpointError for a path at which nothing lies: a URL, the name of a model on the Hub, or a slip."""
    text = str(path)
    where, what, fix = text, "path does not exist", "check the spelling"
    if match := _URL.match(text):
        scheme = match[0].rstrip(":/").lower()
        what = f"a URL ({scheme}://), which crossdock does not fetch"
        rest = text[match.end() :]
        fix = "download it first, and pass the folder"
        if scheme == "hf" or rest.startswith(("huggingface.co/", "hf.co/")):
            name = "/".join(re.sub(r"\A(huggingface|hf)\.co/", "", rest).split("/")[:2])
            fix = f"hf download {name} --local-dir FOLDER, and pass FOLDER"
    elif _HUB_ID.match(text):
        fix = f"if it is the name of a model on the Hub: hf download {text} --local-dir FOLDER, and pass FOLDER"
    raise NotACheckpointError(what, where=where, fix=fix)


def refuse_foreign(path: Path) -> None:
    """Raise NotACheckpointError, with the way out, for what another program wrote and no reader here knows."""
    if path.is_file():
        _refuse_file(path)
        return
    names = sorted(entry.name for entry in islice(path.iterdir(), _MOST))
    _refuse_pointers(path, names)
    if any(_READ.fullmatch(name) for name in names):
        return
    if ranks := [match for name in names if (match := _RANKS.match(name))]:
        _refuse_ranks(path, ranks)
    found = _sign(names)
    if found is None:
        steps = (path / name for name in names if _NESTED.match(name) and (path / name).is_dir())
        found = next((kind for step in steps if (kind := _sign(_names(step)))), None)
    if found is not None:
        raise NotACheckpointError(f"this is {found.what}", where=str(path), fix=found.fix)
    if parts := [name for name in names if name.endswith(".gguf")]:
        fix = f"pass the file: {path / parts[0]}"
        raise NotACheckpointError("a folder of GGUF files", where=str(path), got=", ".join(parts[:5]), fix=fix)


def _refuse_file(path: Path) -> None:
    if path.suffix in _HEAVY and _is_pointer(path):
        raise NotACheckpointError(
            "a Git LFS pointer instead of the file",
            where=str(path),
            fix="git lfs pull, or download the file again",
        )
    if match := _RANKS.match(path.name):
        _refuse_ranks(path, [match])
    if path.suffix == ".nemo":
        raise NotACheckpointError(
            "this is a NeMo 1 archive",
            where=str(path),
            fix="unpack it (tar -xf) and pass the folder model_weights in it, with --config",
        )
    found = _sign([path.name], whole=False)
    if found is not None:
        raise NotACheckpointError(f"this is part of {found.what}", where=str(path), fix=found.fix)


def _refuse_ranks(path: Path, ranks: Sequence[re.Match[str]]) -> None:
    """FSDP's own rank files, of which one alone is a whole model."""
    world = int(ranks[0][1])
    if world > 1:
        raise NotACheckpointError(
            f"FSDP rank files ({world} ranks), as verl saves them",
            where=str(path),
            fix="python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT, and pass OUT",
        )
    if path.is_dir():
        fix = f"pass the file: {path / ranks[0][0]}, with --config"
        raise NotACheckpointError("a verl folder with the model in one file", where=str(path), fix=fix)


def _refuse_pointers(path: Path, names: Sequence[str]) -> None:
    pointers = [name for name in names if name.endswith(_HEAVY) and _is_pointer(path / name)]
    if pointers:
        raise NotACheckpointError(
            f"{len(pointers)} files are Git LFS pointers, not the files themselves",
            where=str(path),
            got=", ".join(pointers[:8]),
            fix="git lfs pull in that folder, or download it again",
        )


def _is_pointer(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > 1024:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _sign(names: Sequence[str], *, whole: bool = True) -> _Kind | None:
    """The first kind of which a name is the sign. whole: names of a folder, not of one file."""
    kinds = _MEMBERS if whole else tuple(kind for kind in _MEMBERS if kind.sign.endswith((r"\.pth", r"\.pt")))
    return next((kind for kind in kinds if any(re.fullmatch(kind.sign, name) for name in names)), None)


def _names(path: Path) -> list[str]:
    return [entry.name for entry in islice(path.iterdir(), _MOST)]
