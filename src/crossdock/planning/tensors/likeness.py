"""Which families an unsupported model is nearest to, by the names of its tensors: a hint, never a choice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from crossdock.errors import Problem
from crossdock.formats.stored import Source
from crossdock.layout.rules import layout, unheld
from crossdock.model.families import families
from crossdock.model.family import Family
from crossdock.planning.tensors.wrappers import NUMBER, PLACE

_LEAST: Final = 0.5  # of the names that a family must know to be called near
_SHOWN: Final = 3


def nearest_family(names: Iterable[str], format_name: str) -> str:
    """A sentence about the families that know most of the stored `names`, and what they do not know.

    format_name  the layout by which the names are compared

    Returns "" where no family knows half of them.
    """
    keys = {NUMBER.sub("#", name) for name in names}
    known = {one.name: _known(one, format_name) for one in families().values() if unheld(format_name, one) is None}
    most = max((len(keys & own) for own in known.values()), default=0)
    if not keys or most < _LEAST * len(keys):
        return ""
    near = sorted((len(own - keys), name) for name, own in known.items() if len(keys & own) == most)[:_SHOWN]
    lacking = sorted(keys.difference(*(known[name] for _, name in near)))
    sentence = f"nearest by tensor names: {', '.join(name for _, name in near)}; "
    if not lacking:
        return sentence + "the names are known, the configuration differs"
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    return f"{sentence}not known there: {', '.join(lacking[:_SHOWN])}{more}"


def names_of_others(source: Source, chosen: Family, unread: int) -> Problem | None:
    """One problem for a source of which every name is known to other families, and not to the chosen one.

    unread  tensors that the chosen family does not know

    Returns None where no other family knows all names: then the names themselves are what is wrong.
    """
    keys = {NUMBER.sub("#", name) for _, name in source.tensors}
    others = [one for one in families().values() if one.name != chosen.name and unheld(source.layout, one) is None]
    known = {one.name: _known(one, source.layout) for one in others}
    near = sorted((len(own - keys), name) for name, own in known.items() if keys <= own)
    strange = sorted(keys - _known(chosen, source.layout))
    if not near or not strange:
        return None
    return Problem(
        f"the names of the tensors are not those of {chosen.name}",
        where=str(source.root),
        expected=f"names of {chosen.name}",
        got=f"{unread} tensors that it does not know, such as {strange[0]}; families that know all names: "
        + ", ".join(name for _, name in near[:_SHOWN]),
        cause="the configuration is of another model than the weights, or model_type is wrong",
        fix="use the configuration that was saved with these weights",
        check="tensor-dropped",
    )


def _known(family: Family, format_name: str) -> frozenset[str]:
    """The stored names of the family's own tensors, numbers as #."""
    rules = [rule for rule in layout(format_name, family).rules if set(rule.tensors) <= set(family.tensors)]
    return frozenset(PLACE.sub("#", p.text.partition(" : ")[0].strip()) for rule in rules for p in rule.patterns)
