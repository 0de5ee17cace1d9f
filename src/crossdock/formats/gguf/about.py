"""What a GGUF file says of its model for people: name, license, where it comes from, recommended sampling.

Engines compute without these keys; programs show them, and llama.cpp samples by the recommended values. They are
taken from --metadata and --name, from the model card (README.md) and generation_config.json of a Hugging Face folder,
and from a GGUF source. Facts: llama.cpp 0c1e57098, gguf-py/gguf/metadata.py and constants.py (Keys.General).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from crossdock.errors import FormatError, InputError, Problem
from crossdock.formats.gguf.container import read_header
from crossdock.formats.gguf.options import GgufOptions
from crossdock.formats.gguf.vocabulary import is_gguf
from crossdock.formats.target import Findings
from crossdock.tokenizers.files import read_json

Pair = tuple[str, str, Any]  # key, type, value
CARD: Final = "README.md"
GENERATION: Final = "generation_config.json"
LARGEST: Final = 1 << 20  # bytes of a model card
_OURS: Final = ("architecture", "file_type", "quantization_version", "alignment", "type")  # follow from the file itself
_TEXTS: Final = (
    "name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by", "size_label",
    "license", "license.name", "license.link", "url", "doi", "uuid", "repo_url", "source.url", "source.doi",
    "source.uuid", "source.repo_url",
)  # fmt: skip
_CARD: Final[Mapping[str, str]] = {  # key -> what cards call it
    "name": "model_name", "author": "model_creator", "description": "description", "license": "license",
    "license.name": "license_name", "license.link": "license_link",
}  # fmt: skip
_LISTS: Final = ("tags", "languages")
_MEMBERS: Final = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
_SAMPLING: Final[Mapping[str, str]] = {
    "sequence": "STRING", "top_k": "INT32", "top_p": "FLOAT32", "min_p": "FLOAT32", "xtc_probability": "FLOAT32",
    "xtc_threshold": "FLOAT32", "temp": "FLOAT32", "penalty_last_n": "INT32", "penalty_repeat": "FLOAT32",
    "mirostat": "INT32", "mirostat_tau": "FLOAT32", "mirostat_eta": "FLOAT32",
}  # fmt: skip
_OTHERWISE: Final = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}  # in generation_config.json
_PYTHON: Final[Mapping[str, tuple[type, ...]]] = {"STRING": (str,), "INT32": (int,), "FLOAT32": (int, float)}
_VERSION: Final = re.compile(r"v?\d[\w.]*")
_HUB: Final = re.compile(r"(?:https?://huggingface\.co/)?([\w.-]+)/([\w.-]+)")


def about(options: GgufOptions, found: Findings) -> list[Pair]:
    """The keys, later sources of them over earlier ones. Raises FormatError for a --metadata that cannot be meant."""
    known: dict[str, Pair] = {}
    for pairs in (_of_source(found.companions), _stated(options.metadata), _named(options.name)):
        known |= {pair[0]: pair for pair in pairs}
    return list(known.values())


def _of_source(companions: Iterable[Path]) -> Iterator[Pair]:
    """What the source says. A damaged card is not an error: nothing is computed by it."""
    for path in companions:
        if is_gguf(path):
            header = read_header(path)
            for key, value in header.metadata.items():
                start, _, rest = key.partition(".")
                if start == "general" and rest not in _OURS:
                    yield key, header.types[key], value
    for folder in dict.fromkeys(path.parent for path in companions if not is_gguf(path)):
        yield from _of_card(folder / CARD)
        if (folder / GENERATION).is_file():
            yield from _sampling(read_json(folder / GENERATION))


def _of_card(path: Path) -> Iterator[Pair]:
    """The front matter of a model card."""
    try:
        if not path.is_file() or path.is_symlink():
            return
        with path.open("rb") as file:
            text = file.read(LARGEST).decode("utf-8", "replace")
        front = re.match(r"---\s*\n(.*?\n)---\s*(?:\n|\Z)", text, re.DOTALL)
        from crossdock.io.yaml import read_mapping  # PyYAML is loaded where there is YAML to read

        card = read_mapping(front[1], str(path)) if front else {}
    except (OSError, InputError):
        return
    for key, name in _CARD.items():
        value = card.get(name)
        if isinstance(value, list) and key == "license":
            value = ",".join(map(str, value))
        if isinstance(value, str) and value:
            yield f"general.{key}", "STRING", value
    for key, stated in (("base_model", card.get("base_model")), ("dataset", card.get("datasets"))):
        ids = [one for one in _texts(stated) if one]
        if ids:
            yield from _members(key, map(_of_hub, ids))
    for key, names in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        values = [one for name in names for one in _texts(card.get(name))]
        if values:
            yield f"general.{key}", "ARRAY[STRING]", values


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [one for one in value or () if isinstance(one, str)]


def _of_hub(text: str) -> dict[str, str]:
    """A model or dataset by its name on the Hub, or by its address."""
    match = _HUB.fullmatch(text)
    if match is None:
        return {"repo_url": text} if "://" in text else {"name": _title(text)}
    place = f"https://huggingface.co/{match[1]}/{match[2]}"
    return {"name": _title(match[2]), "organization": _title(match[1]), "repo_url": place}


def _title(name: str) -> str:
    """A name for people: words that are all small begin with a capital."""
    words = name.replace("-", " ").split()
    return " ".join(one.title() if one.islower() and not _VERSION.fullmatch(one) else one for one in words)


def _members(key: str, members: Iterable[Mapping[str, str]]) -> Iterator[Pair]:
    listed = list(members)
    yield f"general.{key}.count", "UINT32", len(listed)
    for number, one in enumerate(listed):
        for name in _MEMBERS:
            if name in one:
                yield f"general.{key}.{number}.{name}", "STRING", one[name]


def _sampling(generation: Mapping[str, Any]) -> Iterator[Pair]:
    for key, kind in _SAMPLING.items():
        value = generation.get(_OTHERWISE.get(key, key))
        if isinstance(value, str | int | float) and isinstance(value, _PYTHON[kind]) and not isinstance(value, bool):
            yield f"general.sampling.{key}", kind, float(value) if kind == "FLOAT32" else value


def _named(name: str | None) -> Iterator[Pair]:
    if name is not None:
        yield "general.name", "STRING", name


def _stated(path: Path | None) -> list[Pair]:
    """The keys of a file of --metadata: one JSON object, with the keys of GGUF."""
    if path is None:
        return []
    out: list[Pair] = []
    problems = []
    for key, value in read_json(path).items():
        pairs = list(_of_file(key.removeprefix("general."), value))
        if not pairs:
            expected = f"general.name, general.license, general.sampling.temp, …: {', '.join((*_TEXTS, *_LISTS))}"
            problems.append(Problem("not a key of information, or a value of another kind", f"{path}: {key}",
                                    expected, repr(value)[:80]))  # fmt: skip
        out += pairs
    if problems:
        raise FormatError(problems)
    return out


def _of_file(key: str, value: Any) -> Iterator[Pair]:
    if key in _TEXTS and isinstance(value, str):
        yield f"general.{key}", "STRING", value
    elif key in _LISTS and isinstance(value, list) and all(isinstance(one, str) for one in value):
        yield f"general.{key}", "ARRAY[STRING]", value
    elif key.startswith("sampling."):
        name = key.removeprefix("sampling.")
        yield from _sampling({_OTHERWISE.get(name, name): value})
    elif key in ("base_models", "datasets") and isinstance(value, list) and all(map(_is_member, value)):
        yield from _members("base_model" if key == "base_models" else "dataset", value)


def _is_member(value: Any) -> bool:
    return isinstance(value, dict) and all(k in _MEMBERS and isinstance(v, str) for k, v in value.items())
