"""Whether a source provides every canonical tensor exactly once, and if not, what may be the cause."""

from __future__ import annotations

from collections.abc import Mapping, Set

from crossdock.errors import Problem
from crossdock.layout.rules import Layout
from crossdock.model.config import ModelConfig
from crossdock.model.family import Family
from crossdock.planning.tensors.resolved import Key, SourceSlice

Provisions = Mapping[str, Mapping[Key, tuple[SourceSlice, ...]]]


def incomplete(
    provisions: Provisions, chosen: Family, config: ModelConfig, rules: Layout, misshapen: Set[str]
) -> list[Problem]:
    """A problem for every canonical tensor that has not as many elements as the model needs.

    provisions  canonical tensor -> (layer, expert) -> what provides it
    misshapen   tensors that have a problem already
    """
    problems = []
    sizes = chosen.sizes(config)
    for name, decl in chosen.present(config).items():
        in_layers = chosen.layers_of(decl, config)
        want = sizes.elements(decl.axes, in_layers)
        have = sum(one.lens.volume for slices in provisions.get(name, {}).values() for one in slices)
        if have == want or name in misshapen:
            continue
        names = [p.text.partition(" : ")[0] for r in rules.rules if name in r.tensors for p in r.patterns]
        if not names:
            problems.append(Problem(f"the {rules.format} layout has no place for {name} of family {chosen.name}"))
        elif have == 0:
            hint = " or --set tie_word_embeddings=true" if name == "head" else ""
            problems.append(
                Problem(
                    f"{name} is missing",
                    expected=" or ".join(names[:3]),
                    cause="a file of the checkpoint is missing, or the configuration asks for what it does not have",
                    fix=f"complete the checkpoint, or correct the configuration with --family{hint}",
                )
            )
        else:
            each = {layer: sizes.elements(decl.axes, (layer,)) for layer in in_layers or ()}
            lacking = _lacking_layers(provisions[name], each)
            problems.append(
                Problem(
                    f"{name} is {'incomplete' if have < want else 'provided more than once'}{lacking}",
                    expected=f"{want} elements",
                    got=f"{have} in {', '.join(names[:2])}",
                    cause="a rank file or shard is missing, or the configuration has more layers or experts"
                    if have < want
                    else "two names for one tensor, both present",
                    fix="complete the checkpoint, or correct the configuration with --set FIELD=VALUE"
                    if have < want
                    else "remove one of them",
                )
            )
    return problems


def _lacking_layers(by_key: Mapping[Key, tuple[SourceSlice, ...]], each: Mapping[int, int]) -> str:
    """The layers that do not have the elements that they should: `each` layer -> how many."""
    if not each or any(layer is None for layer, _ in by_key):
        return ""
    have = dict.fromkeys(each, 0)
    for (layer, _), slices in by_key.items():
        if layer in have:
            have[layer] += sum(one.lens.volume for one in slices)
    lacking = [str(layer) for layer, count in have.items() if count != each[layer]]
    return f" in layers {', '.join(lacking[:8])}{'...' if len(lacking) > 8 else ''}" if lacking else ""
