"""Commands, and files that `inspect` and `verify` know, of packages that come with crossdock but are not part of it.

Modules are named here and imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

# name of a command -> its module, and the sentence that the list of commands shows
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "split": (
            "crossdock_powerinfer.commands.split",
            "Choose the FFN neurons that PowerInfer keeps on the GPU.",
        ),
        "activations": (
            "crossdock_powerinfer.commands.activations",
            "Count how often each FFN neuron of MODEL is active over a text.",
        ),
    }
)
_FILES = ("crossdock_powerinfer.commands.index",)


class ForeignFile(Protocol):
    """A module for one kind of file that is not a checkpoint."""

    def sniff(self, path: Path) -> bool:
        """Whether `path` is such a file; cheap, never raises."""
        ...

    def inspect(self, path: Path, *, as_json: bool) -> int:
        """Print what the file holds; returns the exit code."""
        ...

    def verify(self, path: Path, against: Path, model: Path | None, *, as_json: bool) -> int:
        """Print whether the file is what `against` (and `model`) ask for; returns the exit code."""
        ...


def foreign_file(path: Path) -> ForeignFile | None:
    """The module that knows the file at `path`, or None when it is none of theirs."""
    modules = (cast(ForeignFile, import_module(name)) for name in _FILES)
    return next((module for module in modules if module.sniff(path)), None)
