"""One section of a YAML file by PyYAML's safe loader, with limits on what a hostile file may cost.

Nothing is instantiated: a tag that names an object is refused where the section uses it, and not looked at elsewhere.
Time and memory are linear in the text: at most `MAX_NODES` nodes, `MAX_DEPTH` deep; an alias is a reference, never a
copy; merge keys (`<<`), which multiply, are refused; a plain scalar of more than `MAX_NUMBER` characters is a text,
because a number of many digits takes quadratic time to read (PyYAML 6.0, `composer.py`, `constructor.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import yaml

from crossdock.errors import FormatError

MAX_NODES: Final = 50_000
MAX_DEPTH: Final = 32
MAX_NUMBER: Final = 64
_TEXT: Final = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML carries no types
    """PyYAML's safe loader with the limits of this module."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes += 1
        self._depth += 1
        mark = self.peek_event().start_mark
        if self._nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES:,} values", problem_mark=mark)
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if len(node.value) > MAX_NUMBER and not node.style:
            node.tag = _TEXT
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Refuse merge keys and keys that occur twice; PyYAML would expand them and keep the last."""
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="a merge key (<<)", problem_mark=key.start_mark)
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r:.100}", problem_mark=key.start_mark)
            seen.add(name)


def read_section(text: str, name: str, where: str) -> Any:
    """The value of the top-level key `name` of the YAML document `text`; None when the key is missing.

    where  the file, for error messages
    Raises FormatError with the line for anything that PyYAML or the limits of this module refuse.
    """

    def section(loader: _Loader, root: Any) -> Any:
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        found = [value for key, value in pairs if isinstance(key, yaml.ScalarNode) and key.value == name]
        if len(found) > 1:
            raise yaml.MarkedYAMLError(problem=f"duplicate key {name!r}", problem_mark=found[1].start_mark)
        return loader.construct_document(found[0]) if found else None

    return _built(text, where, section)


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """The YAML document `text`, of which every key is a text. Raises FormatError as `read_section` does."""

    def whole(loader: _Loader, root: Any) -> Any:
        return loader.construct_document(root) if isinstance(root, yaml.MappingNode) else {}

    return {key: value for key, value in _built(text, where, whole).items() if isinstance(key, str)}


def _built(text: str, where: str, build: Callable[[_Loader, Any], Any]) -> Any:
    """What `build` makes of the document's node. Raises FormatError."""
    loader = _Loader("")
    try:
        loader = _Loader(text)
        return build(loader, loader.get_single_node())
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        what = getattr(error, "problem", None) or str(error)
        raise FormatError(
            f"not YAML that crossdock reads: {str(what)[:200]}",
            where=f"{where}{line}",
            fix="pass the configuration as JSON with --config",
        ) from None
    finally:
        loader.dispose()
