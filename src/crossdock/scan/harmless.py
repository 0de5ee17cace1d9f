"""Names whose building is known to do nothing, from `data/harmless.toml`: exact names, no packages, no patterns."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from crossdock.unpickle.schema import ITEM_SIZES, STORAGE_DTYPES
from crossdock.unpickle.values import printable

CONSTANT: Final = "constant"
TYPE: Final = "type"
NEW: Final = "new"
CALL: Final = "call"
CALLER: Final = "caller"
LOADER: Final = "loader"
_FILE = Path(__file__).parent.parent / "data" / "harmless.toml"
_OBJECTS = "object"  # the role of classes that copyreg._reconstructor may make


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a pickle mentions, and how it may be used without a finding.

    use          "" when nothing is known of it
    takes_names  argument position ("any": each) -> names and "@role"s that it may be given
    texts        argument position -> texts that it may be
    fills        opcodes that may fill what it gave
    sizes        an integer argument is a number of bytes to allocate
    role         what `takes_names` of others call it
    itemsize     bytes of an element, of a class of storages
    why          the reason, for tests and readers
    """

    module: str
    name: str
    use: str = ""
    takes_names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    texts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fills: frozenset[str] = frozenset()
    sizes: bool = False
    role: str = ""
    itemsize: int = 0
    why: str = ""

    @property
    def qualified(self) -> str:
        """`module.name`, cut to a length that fits a message."""
        return printable(f"{self.module}.{self.name}")

    @property
    def shown_module(self) -> str:
        """The module, cut to a length that fits a message."""
        return printable(self.module)

    def takes(self, position: int, other: Name, *, direct: bool) -> bool:
        """Whether a call of this name may be given `other` at `position`, itself or (not direct) inside a tuple."""
        if not other.use:
            return False
        allowed = self.takes_names.get("any", frozenset()) | self.takes_names.get(str(position), frozenset())
        if f"{other.module}.{other.name}" in allowed or (other.role and f"@{other.role}" in allowed):
            return True
        return "@object" in allowed and direct and other.use in (NEW, CALL) and not other.takes_names


@cache
def names() -> Mapping[tuple[str, str], Name]:
    """Every name of the data file, by module and name."""
    table: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    found: dict[tuple[str, str], Name] = {}
    for group in table["names"]:
        takes = {position: frozenset(allowed) for position, allowed in group.get("takes", {}).items()}
        for name in group["names"]:
            found[group["module"], name] = Name(
                group["module"],
                name,
                group["use"],
                takes,
                {position: frozenset(allowed) for position, allowed in group.get("texts", {}).items()},
                frozenset(group.get("fills", ())),
                group.get("sizes", False),
                group.get("role", ""),
                ITEM_SIZES.get(STORAGE_DTYPES.get(name, ""), 0),
                group["why"],
            )
    return found


def known(module: str, name: str) -> Name:
    """The name with its use, or one without."""
    return names().get((module, name)) or Name(module, name)
