"""Step 1: which containers the target has for this model, on which ranks, once it is known to hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.formats.target import Ranks, Target
from crossdock.layout.lenses import Container, geometry_of
from crossdock.layout.rules import Layout, layout, unheld
from crossdock.model.config import ModelConfig
from crossdock.model.family import Family, is_allowed
from crossdock.planning.adapter_containers import adapter_containers
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.nextn import draft_model
from crossdock.planning.tensors.containers import unplaced, wanted_containers


@dataclass(frozen=True)
class TargetContainers:
    """The target's containers.

    rules      the target's layout for this family; ranks: how the target is cut
    variables  what the layout's expressions may name: configuration, settings of the target, the layout's own numbers
    alphas     of an adapter: the model's tensor -> scale * rank of its pair
    problems   tensors that have no place; step 2 adds those without a source, so that all are raised at once
    """

    rules: Layout
    ranks: Ranks
    variables: Mapping[str, Any]
    containers: tuple[Container, ...]
    problems: tuple[Problem, ...]
    alphas: Mapping[str, float] = field(default_factory=dict)


def containers(checkpoint: Checkpoint, target: Target[Any]) -> TargetContainers:
    """The containers of `target`. Raises PlanError with every reason for which it cannot hold the model."""
    family, config = checkpoint.family, checkpoint.config
    if checkpoint.is_adapter:
        if not target.pairs_in:
            raise PlanError(
                "this is an adapter, not a model",
                where=str(checkpoint.source.root),
                fix="--merge adds it to --base MODEL; --to gguf-lora or --to peft keeps it an adapter",
                check="adapter-unmerged",
            )
        found = adapter_containers(checkpoint, type(target))
        return TargetContainers(found.rules, found.ranks, found.variables, found.containers, (), found.alphas)
    problem = unheld(target.layout, family)
    if problem is not None:
        raise PlanError(_unmet(layout(target.layout), family, config) or problem)
    rules = layout(target.layout, family)
    ranks = _ranks(checkpoint, target, rules)
    variables = {**config.as_dict(), **ranks.settings}
    variables |= {k: v.evaluate(variables) for k, v in rules.variables.items() if v.names <= variables.keys()}
    geometry = geometry_of(family, config, ranks.sizes, ranks.partitions, rules.numbering(variables))
    wanted, problems = wanted_containers(rules, geometry, family, config, variables)
    problems += unplaced(wanted, family, config, target.name, rules)
    if getattr(target.options, "mtp_only", False):
        wanted = draft_model(wanted, config)
    return TargetContainers(rules, ranks, variables, tuple(wanted), tuple(problems))


def _ranks(checkpoint: Checkpoint, target: Target[Any], rules: Layout) -> Ranks:
    """The ranks of the target, when it can express this model and they can share it."""
    family, config = checkpoint.family, checkpoint.config
    ranks = Ranks()
    problems: list[Problem] = []
    try:
        ranks = target.ranks(config)
    except PlanError as error:
        problems += error.problems
    problems += [
        Problem(
            f"{target.name} cannot express this {family.name} model",
            where=one.field,
            expected=" or ".join(map(repr, one.only)),
            got=repr(getattr(config, one.field)),
            cause=one.sentence,
        )
        for one in rules.writing.fits
        if not is_allowed(getattr(config, one.field), one.only)
    ]
    problems += _unmet(rules, family, config)
    problems += family.uncovered(target.layout, config)
    if problems:
        raise PlanError(problems)
    if rules.writing.unset:
        what = f"family {family.name} does not say what to write for {', '.join(rules.writing.unset)}"
        raise PlanError(what, where=family.where, fix=f"write it in [{target.layout}.write] of this file")
    return ranks


def _unmet(rules: Layout, family: Family, config: ModelConfig) -> list[Problem]:
    """A problem for each sentence of the layout's [needs] that does not hold for this model."""
    values = config.as_dict()
    return [
        Problem(need.sentence, where=family.name, expected="" if need.never else need.condition.text)
        for need in rules.writing.needs
        if not need.condition.evaluate(values)
    ]
