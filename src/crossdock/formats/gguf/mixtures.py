"""Quantisations that give tensors different types, as llama.cpp's own: which type each tensor of a model gets.

The rules are data (`data/gguf_mixtures.toml`); here is what they are asked about. Knows names, shapes and GGUF keys,
never values. Facts: llama.cpp src/llama-quant.cpp, 86a2835 (October 2026).
"""

from __future__ import annotations

import fnmatch
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.errors import ConfigError
from crossdock.formats.target import TensorSpec
from crossdock.model.expressions import Expression
from crossdock.plugins import DATA

_LAYER = re.compile(r"blk\.(\d+)\.")
_FILE = "data/gguf_mixtures.toml"


@dataclass(frozen=True, slots=True)
class Mixture:
    """One quantisation. `roles`: the type of a role where it is not that of all `matrices`."""

    file_type: int
    matrices: str
    roles: Mapping[str, Expression]


@dataclass(frozen=True, slots=True)
class Mixtures:
    """All of them by name, aliases included, and what they share. See the data file."""

    named: Mapping[str, Mixture]
    roles: Mapping[str, tuple[str, ...]]
    models: Mapping[str, Expression]
    always: Mapping[str, Expression]
    fallback: Mapping[str, str]


@functools.cache
def mixtures() -> Mixtures:
    """Read the data file. Raises ConfigError (a packaging fault) for what it does not know."""
    data = tomllib.loads((DATA.parent / _FILE).read_text(encoding="utf-8"))
    roles = {name: tuple(globs) for name, globs in data["roles"].items()}
    named = {name: _mixture(name, entry, roles) for name, entry in data["mixtures"].items()}
    named |= {alias: named[name] for alias, name in data["aliases"].items()}
    return Mixtures(
        MappingProxyType(named),
        MappingProxyType(roles),
        MappingProxyType({name: Expression(text, _FILE) for name, text in data["models"].items()}),
        MappingProxyType({role: Expression(text, _FILE) for role, text in data["always"].items()}),
        MappingProxyType(data["fallback"]),
    )


def types(name: str, tensors: Sequence[TensorSpec], keys: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    """The type of every matrix under the mixture `name`, by tensor: before the fallback for short rows.

    keys   what the file will say: key without the architecture -> (type, value)
    """
    known, mixture = mixtures(), mixtures().named[name]
    facts = _facts(keys)
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    roles = {tensor.name: _role(tensor.name, tied, known.roles) for tensor in tensors}
    # llama.cpp goes through layers in order, and counts what it meets
    order = sorted(tensors, key=lambda tensor: (_layer(tensor.name), tensor.name))
    holding = [tensor.name for tensor in order if roles[tensor.name] == "attn_v"]
    dense = [tensor.name for tensor in order if roles[tensor.name] == "ffn_down" and len(tensor.shape) > 1]
    dense = dense if facts["experts"] < 2 else []
    out: dict[str, str] = {}
    for tensor in tensors:
        role, at, among = roles[tensor.name], _layer(tensor.name), facts["layers"]
        if role == "attn_v":
            at, among = holding.index(tensor.name), len(holding)
        elif tensor.name in dense:
            at = dense.index(tensor.name)
        more = at < among // 8 or at >= 7 * among // 8 or (at - among // 8) % 3 == 2
        values = {**facts, "i": at, "n": among, "more_bits": more, "row": tensor.shape[-1]}
        values |= {codec: codec for codec in codecs.names()}
        chosen = mixture.roles[role].evaluate(values) if role in mixture.roles else mixture.matrices
        last = known.always.get(role)
        out[tensor.name] = chosen if last is None else last.evaluate({**values, "chosen": chosen})
    return out


def _mixture(name: str, entry: dict[str, Any], roles: Mapping[str, Any]) -> Mixture:
    unknown = entry.keys() - {"file_type", "matrices"} - roles.keys()
    if unknown:
        raise ConfigError(f"mixture {name} has a type for {min(unknown)!r}, which is not a role", where=_FILE)
    own = {role: Expression(entry[role], _FILE) for role in roles if role in entry}
    return Mixture(entry["file_type"], entry["matrices"], MappingProxyType(own))


def _role(name: str, tied: bool, roles: Mapping[str, tuple[str, ...]]) -> str:
    found = (role for role, globs in roles.items() if any(fnmatch.fnmatchcase(name, glob) for glob in globs))
    role = next(found, "")
    return "output" if tied and role == "embedding" else role


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _facts(keys: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """What the rules ask of a model."""

    def number(key: str, otherwise: int) -> int:
        value = keys[key][1] if key in keys else otherwise
        return int(value[0] if isinstance(value, list | tuple) else value)  # that of the first layer

    heads = number("attention.head_count", 1)
    kv_heads = number("attention.head_count_kv", heads)
    facts = {
        "arch": keys["general.architecture"][1],
        "layers": number("block_count", 0),
        "experts": number("expert_count", 0),
        "heads": heads,
        "kv_heads": kv_heads,
        "kv_sharing": heads // kv_heads if kv_heads else 0,
    }
    return facts | {name: bool(rule.evaluate(facts)) for name, rule in mixtures().models.items()}
