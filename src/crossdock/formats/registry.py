"""Which formats there are: sources that open paths, and targets that write. Each is one module, imported when needed.

Third parties add sources by the entry point group `crossdock.sources` (a module with `sniff` and `open_source`) and
targets by `crossdock.targets` (a `Target`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from crossdock.errors import EnvironmentProblem, NotACheckpointError, Problem, UsageError
from crossdock.formats.foreign import refuse_foreign, refuse_missing
from crossdock.io.links import check_links, links_in
from crossdock.options import made, options_of
from crossdock.plugins import registered
from crossdock.wording import nearest

if TYPE_CHECKING:  # the command line asks for options before numpy is worth importing
    from crossdock.formats.options import Options
    from crossdock.formats.stored import Source
    from crossdock.formats.target import Target


class SourceFormat(Protocol):
    """A module that reads one kind of checkpoint."""

    def sniff(self, path: Path) -> bool:
        """Whether `path` looks like this format; cheap, never raises."""
        ...

    def open_source(self, path: Path, *, iteration: int | None = None) -> Source:
        """Read the headers of the checkpoint at `path`, and no tensor data."""
        ...


_Kind = Literal["file", "folder", "both"]
# each with what its checkpoints are, so that fewer modules are imported to see whose a path is
_SOURCES: Mapping[str, tuple[_Kind, str]] = MappingProxyType(
    {
        "gguf": ("file", "crossdock.formats.gguf.source"),
        "ggml_training": ("file", "crossdock.formats.ggml_training"),
        "trtllm": ("both", "crossdock.formats.trtllm.source"),
        "megatron_state": ("file", "crossdock.formats.megatron.state"),
        "peft": ("both", "crossdock.formats.hf.peft_source"),
        "onnx": ("folder", "crossdock.formats.onnx.source"),
        "hf": ("both", "crossdock.formats.hf.source"),
        "megatron": ("folder", "crossdock.formats.megatron"),
        "dcp": ("folder", "crossdock.formats.dcp.source"),
    }
)
# each with the dataclass of its options, which the command line reads before it knows the target
_TARGETS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gguf": ("gguf.options:GgufOptions", "gguf.target:GgufTarget"),
        "hf": ("hf.options:HfOptions", "hf.target:HfTarget"),
        "onnx": ("onnx.options:OnnxOptions", "onnx.target:OnnxTarget"),
        "trtllm": ("trtllm.options:TrtllmOptions", "trtllm.target:TrtllmTarget"),
        "gguf-lora": ("options:Options", "gguf.adapter:GgufLoraTarget"),
        "peft": ("options:Options", "hf.peft:PeftTarget"),
        "gguf-checkpoint": ("gguf.options:GgufCheckpointOptions", "ggml_training.target:GgufCheckpointTarget"),
    }
)


def names() -> tuple[str, ...]:
    """Formats that can be read, in the order in which they are tried."""
    return (*_SOURCES, *_plugins("crossdock.sources"))


def targets() -> tuple[str, ...]:
    """Formats that can be written."""
    return (*_TARGETS, *_plugins("crossdock.targets"))


def source_format(name: str) -> SourceFormat:
    """The reader called `name`. Raises UsageError that lists the known ones."""
    if name in _SOURCES:
        return cast(SourceFormat, importlib.import_module(_SOURCES[name][1]))
    if name in _plugins("crossdock.sources"):
        return cast(SourceFormat, _plugins("crossdock.sources")[name].load())
    raise UsageError(f"unknown source format {name!r}", expected=", ".join(names()))


def target(name: str) -> type[Target[Any]]:
    """The target called `name`. Raises UsageError that lists the known ones."""
    if name in _TARGETS:
        return cast("type[Target[Any]]", _loaded(_TARGETS[name][1]))
    if name in _plugins("crossdock.targets"):
        return cast("type[Target[Any]]", _plugins("crossdock.targets")[name].load())
    raise UsageError(f"unknown target format {name!r}", expected=", ".join(targets()))


def options_type(name: str) -> type[Options]:
    """The dataclass of the options of the target called `name`. Raises UsageError that lists the known ones."""
    if name in _TARGETS:
        return cast("type[Options]", _loaded(_TARGETS[name][0]))
    return target(name).options_type


def with_option(option: str) -> list[str]:
    """The targets that have `option`."""
    return [name for name in targets() if option in options_of(options_type(name))]


def made_target(name: str, values: Mapping[str, Any]) -> Target[Any]:
    """The target called `name` with the options `values`.

    Raises UsageError with every value that is wrong, and every option that only other targets have, or none.
    """
    kind = target(name)
    foreign = [option for option in values if option not in options_of(kind.options_type)]
    problems = [_foreign(name, option) for option in foreign]
    try:
        options = made(kind.options_type, {key: value for key, value in values.items() if key not in foreign})
    except UsageError as error:
        problems += error.problems
    if problems:
        raise UsageError(problems)
    return kind(options)


def _foreign(name: str, option: str) -> Problem:
    flag, owners = "--" + option.replace("_", "-"), with_option(option)
    if not owners:
        near = nearest(option, options_of(options_type(name)))
        return Problem(f"{name} has no option {option}", expected=" or ".join(near))
    return Problem(f"{name} has no option {flag}", fix=f"leave it out, or --to {' or '.join(owners)}, which has it")


def _loaded(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(f"crossdock.formats.{module}"), attribute)


def open_source(path: Path, *, format: str | None = None, iteration: int | None = None) -> Source:
    """Open a checkpoint of any format: headers only.

    Raises NotACheckpointError that says what was found, EnvironmentProblem where the machine does not let it be read,
    and what the format's own reader raises.
    """
    try:
        return _open(path, format, iteration)
    except OSError as error:
        where = str(error.filename or path)
        raise EnvironmentProblem(
            f"this cannot be read: {error.strerror or error}",
            where=where,
            fix="check the path and its permissions",
        ) from error


def _open(path: Path, format: str | None, iteration: int | None) -> Source:
    root = path if path.is_dir() else path.parent
    if path.is_dir():
        check_links(links_in(path), path)
    source = _read(path, format, iteration)
    named = [file.path for file in source.files if file.path != path]
    beside = [link for folder in {file.parent for file in named} - {root} for link in links_in(folder)]
    check_links([*named, *beside, *source.companion_files], root)
    return source


def _read(path: Path, format: str | None, iteration: int | None) -> Source:
    if not path.exists():
        refuse_missing(path)
    if not path.is_file() and not path.is_dir():
        raise NotACheckpointError("a pipe or device, neither file nor folder", where=str(path))
    if format is not None:
        return source_format(format).open_source(path, iteration=iteration)
    refuse_foreign(path)
    kinds: tuple[_Kind, _Kind] = ("both", "folder" if path.is_dir() else "file")
    own = [name for name, (kind, _) in _SOURCES.items() if kind in kinds]
    for name in chain(own, _plugins("crossdock.sources")):
        reader = source_format(name)
        if reader.sniff(path):
            return reader.open_source(path, iteration=iteration)
    raise NotACheckpointError(
        "not a checkpoint that crossdock reads",
        where=str(path),
        expected="a Megatron run, iteration or state dict, a Hugging Face, TensorRT-LLM or torch DCP folder, a GGUF, "
        "or an old training checkpoint of llama.cpp (ggcp, ggcl)",
        got=_contents(path),
        fix="pass the folder that contains such files, or force a format with --format: " + ", ".join(names()),
    )


def open_output(path: Path) -> Source:
    """Open what a target wrote, for `verify`: through the target where the output is no source of its own.

    Raises NotACheckpointError, FormatError.
    """
    for name in targets():
        found = target(name).reopen(path)
        if found is not None:
            return found
    return open_source(path)


def _plugins(group: str) -> Mapping[str, Any]:
    return {entry.name: entry for entry in registered(group)}


def _contents(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as file:
            return f"a file of {path.stat().st_size:,} bytes that begins with {file.read(8)!r}"
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    if not found:
        return "an empty folder"
    return "a folder with " + ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
