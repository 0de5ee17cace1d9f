"""One section of a YAML file as PyYAML's safe_dump writes it: blocks, plain and quoted scalars, anchors. No tags.

Not a YAML reader: whatever safe_dump does not write (flow collections, block scalars, tags, complex keys) is refused by
line. Nothing is instantiated. Scalars mean what they mean in YAML 1.1 (PyYAML 6.0, `resolver.py`, `emitter.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from crossdock.errors import FormatError
from crossdock.unpickle import printable

MAX_DEPTH = 32
_KEY = re.compile(
    r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"'&*!|>%@`#\[\]{}?,-](?:[^:]|:(?=\S))*?|-\S(?:[^:]|:(?=\S))*?)\s*:(?:\s+(.*))?\Z"""
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))\Z"
)
_WORDS: Mapping[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None, ".nan": float("nan"), ".NaN": float("nan"),
    **{w: True for word in ("yes", "true", "on") for w in (word, word.capitalize(), word.upper())},
    **{w: False for word in ("no", "false", "off") for w in (word, word.capitalize(), word.upper())},
}  # fmt: skip
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED: Mapping[str, str] = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip


@dataclass(slots=True)
class _Lines:
    """The section's lines, (indent, text, number), and how far it was read."""

    items: list[tuple[int, str, int]]
    where: str
    at: int = 0
    anchors: dict[str, Any] = field(default_factory=dict)

    def fail(self, what: str) -> NoReturn:
        _, text, number = self.items[min(self.at, len(self.items) - 1)]
        raise FormatError(
            what, where=f"{self.where}, line {number}", got=printable(text[:80]),
            fix="give the configuration as JSON with --config",
        )  # fmt: skip


def read_section(text: str, name: str, where: str) -> Any:
    """What the top-level key `name` holds; None when it is not there. Raises FormatError with the line."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.rstrip() == f"{name}:"), None)
    if start is None:
        return None
    end = next((n for n in range(start + 1, len(lines)) if lines[n].strip() and lines[n][0] not in " #"), len(lines))
    items = [(len(line) - len(line.lstrip(" ")), line.strip(), start + 2 + n)
             for n, line in enumerate(lines[start + 1 : end])]  # fmt: skip
    found = _Lines([item for item in items if not item[1].startswith("#")], where)
    while found.items and not found.items[-1][1]:
        found.items.pop()
    if not found.items:
        return None
    value = _block(found, found.items[0][0], 0)
    if found.at < len(found.items):
        found.fail("a line that is indented otherwise than its block")
    return value


def _block(lines: _Lines, indent: int, depth: int) -> Any:
    """The map or list whose lines start at `indent`."""
    if depth > MAX_DEPTH:
        lines.fail(f"nested more than {MAX_DEPTH} deep")
    _, text, _ = lines.items[lines.at]
    return _list(lines, indent, depth) if text == "-" or text.startswith("- ") else _map(lines, indent, depth)


def _map(lines: _Lines, indent: int, depth: int) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    while lines.at < len(lines.items) and lines.items[lines.at][0] == indent:
        text = lines.items[lines.at][1]
        found = _KEY.match(text)
        if not found:
            lines.fail("not a key and a value")
        key = _scalar(lines, found[1])
        if key in out:
            lines.fail(f"{key!r} is given twice")
        out[key] = _value(lines, found[2] or "", indent, depth)
    return out


def _list(lines: _Lines, indent: int, depth: int) -> list[Any]:
    out = []
    while lines.at < len(lines.items):
        at, text, number = lines.items[lines.at]
        if at != indent or not (text == "-" or text.startswith("- ")):
            break
        rest = text[1:].strip()
        if rest.startswith("- ") or rest == "-" or _KEY.match(rest):
            inner = indent + len(text) - len(rest)
            lines.items[lines.at] = (inner, rest, number)
            out.append(_block(lines, inner, depth + 1))
        else:
            out.append(_value(lines, rest, indent, depth))
    return out


def _value(lines: _Lines, text: str, indent: int, depth: int) -> Any:
    """The value that begins with `text` on the current line, which is used up, and may go on below it."""
    anchor = ""
    if text.startswith("&"):
        anchor, _, text = text[1:].partition(" ")
        text = text.strip()
    if text.startswith("*"):
        if text[1:] not in lines.anchors:
            lines.fail("an alias of something that is not above it")
        lines.at += 1
        return lines.anchors[text[1:]]
    if text:
        text = _folded(lines, text, indent)
        lines.at -= 1  # for the line number of a complaint
        value = _scalar(lines, text)
        lines.at += 1
    else:
        lines.at += 1
        value = None
        if lines.at < len(lines.items):
            below, next_text, _ = lines.items[lines.at]
            if below > indent or (below == indent and next_text.startswith("-") and _is_item(next_text)):
                value = _block(lines, below, depth + 1)
    if anchor:
        lines.anchors[anchor] = value
    return value


def _is_item(text: str) -> bool:
    return text == "-" or text.startswith("- ")


def _folded(lines: _Lines, text: str, indent: int) -> str:
    """`text` with the lines that continue it; the lines are used up."""
    quote = text[0] if text[0] in "\"'" else ""
    lines.at += 1
    gap = ""
    while lines.at < len(lines.items) and (not _closed(text, quote) if quote else True):
        below, more, _ = lines.items[lines.at]
        if more and not quote and below <= indent:
            break
        if not quote and (": " in more or more.endswith(":")):
            lines.fail("a key that is indented otherwise than its block")
        lines.at += 1
        if not more:  # a blank line stands for a line break
            gap += "\n"
            continue
        if quote == '"' and text.endswith("\\") and not text.endswith("\\\\"):
            text, gap = text[:-1], gap or "\0"  # an escaped line break joins without a blank
        text, gap = text + (gap or " ").replace("\0", "") + more, ""
    return text


def _closed(text: str, quote: str) -> bool:
    inner = text[1:].replace("''", "") if quote == "'" else re.sub(r"\\.", "", text[1:])
    return inner.endswith(quote)


def _scalar(lines: _Lines, text: str) -> Any:
    if text in ("[]", "{}"):
        return [] if text == "[]" else {}
    if text[:1] == '"':
        if len(text) < 2 or not _closed(text, '"'):
            lines.fail("a text without its end")
        return _ESCAPE.sub(_unescaped, text[1:-1])
    if text[:1] == "'":
        if len(text) < 2 or not _closed(text, "'"):
            lines.fail("a text without its end")
        return text[1:-1].replace("''", "'")
    if text[:1] in tuple("[{|>!&*%@`"):
        lines.fail("YAML that crossdock does not read (flow collections, block texts, tags)")
    text = text.partition(" #")[0].rstrip()
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < 64 and _INT.match(text):
        return int(text.replace("_", ""))
    if len(text) < 64 and _FLOAT.match(text):
        return float(text.replace("_", "").lower().replace(".inf", "inf"))
    return text


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else "\ufffd"
    return _ESCAPED.get(code, code)
