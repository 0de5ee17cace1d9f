"""Which engines run plans. Third parties register theirs by the entry point group `crossdock.engines`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from crossdock.errors import UsageError
from crossdock.plugins import registered

if TYPE_CHECKING:
    from crossdock.running.engines.engine import Engine

# each is imported when it is asked for
_OWN: Mapping[str, str] = MappingProxyType({"threads": "crossdock.running.engines.threads:Threads"})


def names() -> tuple[str, ...]:
    """Engines that can be asked for, the default first."""
    return (*_OWN, *(entry.name for entry in registered("crossdock.engines") if entry.name not in _OWN))


def engine(name: str | Engine) -> Engine:
    """The engine called `name`; an engine itself is taken as it is. Raises UsageError that lists the known ones."""
    if not isinstance(name, str):
        return name
    made: Any
    if name in _OWN:
        module, _, kind = _OWN[name].partition(":")
        made = getattr(import_module(module), kind)()
    else:
        found = [entry for entry in registered("crossdock.engines") if entry.name == name]
        if not found:
            raise UsageError(f"unknown engine {name!r}", expected=" or ".join(names()))
        made = found[0].load()()
    engine: Engine = made
    return engine
