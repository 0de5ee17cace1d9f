"""Making a plan: for every tensor of the target, the boxes that fill it. Reads no tensor data and writes nothing.

Everything that can be known to be wrong before copying is raised here, all at once.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import PlanError, Problem, UsageError
from crossdock.formats.stored import TrainingScales
from crossdock.formats.target import (
    Assembled,
    MixingTarget,
    PassThrough,
    Ranks,
    Request,
    ScaledTarget,
    State,
    StateTarget,
    Target,
    TensorSpec,
)
from crossdock.layout.lenses import Container, Lens, Placement, geometry_of
from crossdock.layout.rules import Layout, layout, unheld
from crossdock.model.config import ModelConfig
from crossdock.model.family import Family, is_allowed
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.merge import product_for
from crossdock.planning.plan import EqualityCheck, Move, Plan, Product, TargetTensor
from crossdock.planning.tensors.containers import unplaced, wanted_containers
from crossdock.planning.tensors.extents import Extents, moves_for
from crossdock.planning.tensors.resolve import Resolved, SourceSlice
from crossdock.planning.tensors.training_scales import scales_of, shared
from crossdock.planning.tensors.training_state import carried_moves, order_checks


@dataclass(frozen=True, slots=True)
class _Filled:
    """A target container with what fills it."""

    wanted: TensorSpec
    moves: tuple[Move, ...]
    add: float
    zeros: int
    of: tuple[str, ...]
    sources: tuple[str, ...]
    experts: int
    sum_as_stored: bool = False
    product: Product | None = None
    scale_blocks: ScaleBlocks | None = None
    static_scales: tuple[float, ...] = ()
    is_scale_tensor: bool = False


def make_plan(checkpoint: Checkpoint, target: Target, request: Request) -> Plan:
    """The plan that writes `checkpoint` as `target`. Raises PlanError, UsageError, TokenizerError with all problems."""
    config, problem = checkpoint.config, unheld(target.layout, checkpoint.family)
    if problem is not None:
        raise PlanError(_unmet(layout(target.layout), checkpoint.family, config) or problem)
    rules = layout(target.layout, checkpoint.family)
    ranks = _ranks(rules, config, target, checkpoint.family, request)
    variables = _variables(rules, config, ranks)
    extents = Extents()
    wanted = isinstance(target, ScaledTarget) and request.quantize in target.needs_training_scales
    scales = checkpoint.source.scales() if wanted and checkpoint.source.scales is not None else None
    filled = _filled(checkpoint, target, rules, variables, ranks, extents, scales)
    state = target.state(checkpoint.source, request) if isinstance(target, StateTarget) else State((), ())
    filled += [_carried(one, extents) for one in state.carried]
    found = [one.wanted for one in filled]
    request = replace(request, source_dtype=_main_dtype(found))
    if isinstance(target, MixingTarget) and request.quantize is not None:
        request = replace(request, mixture=target.mixture(found, _written(rules, variables, found), request))
    filled, notices = _encoded(filled, target, request, rules)
    held = [one.wanted for one in filled]
    computed = target.computed(config, held, request)
    tensors = [*held, *(tensor for tensor, _ in computed)]
    with_vocab = replace(
        request, vocab_from=f"vocab_size from {checkpoint.described.origins.get('vocab_size', 'default')}"
    )
    equality_checks = (*_equality_checks(checkpoint, extents), *order_checks(extents, state))
    omitted = _omitted(checkpoint, rules)
    written = _written(rules, variables, tensors) | {key: (kind, value) for key, kind, value in state.keys}
    assembled = target.assemble(tensors, config, written, with_vocab)
    return Plan(
        source_format=checkpoint.source.format,
        source_root=checkpoint.source.root,
        target_format=target.name,
        single_file=target.single_file,
        sources=checkpoint.source.files,
        extents=tuple(extents.planned),
        files=assembled.files,
        tensors=_placed(filled, computed, assembled),
        described=checkpoint.described,
        equality_checks=equality_checks,
        facts=assembled.facts,
        warnings=(
            *checkpoint.described.notices,
            *checkpoint.resolved.notices,
            *ranks.warnings,
            *(f"no scales of fp8 training: {sentence}" for sentence in (scales.unreadable[:3] if scales else ())),
            *(sentence for sentence, when in rules.warn.items() if when.evaluate(variables)),
            *(f"NOT carried over: {', '.join(names)}; {sentence}" for sentence, names in omitted.items()),
            *_grouped(notices),
            *state.warnings,
            *assembled.warnings,
        ),
        ignored=_ignored(checkpoint, state, omitted),
        settings={"dtype": request.dtype, "quantize": request.quantize, **ranks.settings},
        fail_on=assembled.fail_on,
        ranks=assembled.ranks,
    )


def _ignored(checkpoint: Checkpoint, state: State, omitted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Names that are left out, and why: what nothing reads and the target has no place for, without what is carried."""
    carried = {one.stored.name for one in state.carried}
    unread = {name: why for name, why in checkpoint.resolved.unread.items() if name not in carried}
    return {**unread, **{name: why for why, names in omitted.items() for name in names}, **checkpoint.described.ignored}


def _omitted(checkpoint: Checkpoint, rules: Layout) -> dict[str, tuple[str, ...]]:
    """Sentence -> the stored names of what the target's layout has no place for and says so."""
    out: dict[str, tuple[str, ...]] = {}
    for glob, sentence in rules.unsupported.items():
        provisions = [
            provision
            for name, by_key in checkpoint.resolved.provisions.items() if fnmatch.fnmatchcase(name, glob)
            for found in by_key.values() for provision in found
        ]  # fmt: skip
        if provisions:
            out[sentence] = tuple(dict.fromkeys(_name(provision) for provision in provisions))
    return out


def _carried(carried: PassThrough, extents: Extents) -> _Filled:
    """A stored vector that goes along as it is, as if it filled a container of its own."""
    stored = carried.stored
    wanted = TensorSpec(carried.name, stored.shape, stored.dtype)
    return _Filled(wanted, carried_moves(extents, carried), 0.0, 0, (), (stored.name,), 1)


def _variables(rules: Layout, config: ModelConfig, ranks: Ranks) -> dict[str, Any]:
    """What the layout's expressions may name: configuration, settings of the target, the layout's own numbers."""
    values = {**config.as_dict(), **ranks.settings}
    return {**values, **{k: v.evaluate(values) for k, v in rules.variables.items() if v.names <= values.keys()}}


def _filled(
    checkpoint: Checkpoint,
    target: Target,
    rules: Layout,
    variables: Mapping[str, Any],
    ranks: Ranks,
    extents: Extents,
    scales: TrainingScales | None,
) -> list[_Filled]:
    """Every container of the target with what fills it. Raises PlanError for all that has no place or no source."""
    family, config = checkpoint.family, checkpoint.config
    geometry = geometry_of(family, config, ranks.sizes, ranks.partitions)
    wanted, problems = wanted_containers(rules, geometry, family, config, variables)
    problems += unplaced(wanted, family, config, target.name, rules)
    fills = [_fill(extents, checkpoint, one, rules, variables, problems, scales) for one in wanted]
    if problems:
        raise PlanError(problems)
    return [one for one in fills if one is not None]


def _encoded(
    filled: Sequence[_Filled], target: Target, request: Request, rules: Layout
) -> tuple[list[_Filled], list[str]]:
    """The same in the dtypes that the target chooses, scales behind what they belong to, and its notices about them."""
    encoded: list[_Filled] = []
    notices: list[str] = []
    problems: list[Problem] = []
    tensors = shared([one.wanted for one in filled], rules.encoding.get("shared", ()))
    for one, wanted in zip(filled, tensors, strict=True):
        try:
            encoding = target.encoding(wanted, request, rules)
        except PlanError as error:
            problems += error.problems
            continue
        scale_blocks = encoding.scale_blocks
        held = wanted._replace(dtype=encoding.dtype, before=wanted.dtype)
        encoded.append(replace(one, wanted=held, scale_blocks=scale_blocks, static_scales=encoding.static_scales))
        if scale_blocks is not None and not encoding.static_scales:
            wanted = TensorSpec(encoding.scales, (scale_blocks.count,), "float32", wanted.part)
            encoded.append(replace(one, wanted=wanted, scale_blocks=scale_blocks, is_scale_tensor=True))
        notices += [encoding.notice] if encoding.notice else []
    if problems:
        raise PlanError(_each_once(problems))
    return encoded, notices


def _each_once(problems: Sequence[Problem]) -> list[Problem]:
    """Problems that differ only in where they are as one, which names the first place and how many there are."""
    found: dict[Problem, list[str]] = {}
    for problem in problems:
        found.setdefault(replace(problem, where=""), []).append(problem.where)
    return [
        replace(one, where=places[0] + (f" (and {len(places) - 1} more tensors)" if len(places) > 1 else ""))
        for one, places in found.items()
    ]


def _placed(
    filled: Sequence[_Filled], computed: Sequence[tuple[TensorSpec, bytes]], assembled: Assembled
) -> tuple[TargetTensor, ...]:
    """The target's tensors at their places: those that moves fill, then the computed ones."""
    return (
        *(
            TargetTensor(
                one.wanted.name, *place, _size(one.wanted), one.wanted.shape, one.wanted.dtype, one.moves, one.add,
                zeros=one.zeros, of=one.of, sources=one.sources, part=one.wanted.part, experts=one.experts,
                sum_as_stored=one.sum_as_stored, product=one.product,
                scale_blocks=one.scale_blocks, static_scales=one.static_scales, is_scale_tensor=one.is_scale_tensor,
            )
            for one, place in zip(filled, assembled.places[: len(filled)], strict=True)
        ),
        *(
            TargetTensor(tensor.name, *place, len(data), tensor.shape, tensor.dtype, (), data=data, part=tensor.part)
            for (tensor, data), place in zip(computed, assembled.places[len(filled) :], strict=True)
        ),
    )  # fmt: skip


def _unmet(rules: Layout, family: Family, config: ModelConfig) -> list[Problem]:
    """A problem for each sentence of the layout's [needs] that does not hold for this model."""
    values = config.as_dict()
    return [
        Problem(sentence, where=family.name, expected="" if need.text == "False" else need.text)
        for sentence, need in rules.requires_for_write.items()
        if not need.evaluate(values)
    ]


def _ranks(rules: Layout, config: ModelConfig, target: Target, family: Family, request: Request) -> Ranks:
    """The ranks of the target, when it can express this model and they can share it."""
    ranks, problems = Ranks(), list[Problem]()
    try:
        ranks = target.ranks(config, request)
    except PlanError as error:
        problems += error.problems
    problems += [
        Problem(
            f"{target.name} cannot express this {family.name} model",
            where=name,
            expected=" or ".join(map(repr, allowed)),
            got=repr(getattr(config, name)),
            cause=rules.requires_reason.get(name, ""),
        )
        for name, allowed in rules.requires.items()
        if not is_allowed(getattr(config, name), allowed)
    ]
    problems += _unmet(rules, family, config)
    problems += family.uncovered(target.layout, config)
    if problems:
        raise PlanError(problems)
    if rules.unset:
        what = f"family {family.name} does not say what to write for {', '.join(rules.unset)}"
        raise PlanError(what, where=family.where, fix=f"write it in [{target.layout}.write] of this file")
    return ranks


def _fill(
    extents: Extents,
    checkpoint: Checkpoint,
    container: Container,
    rules: Layout,
    variables: Mapping[str, Any],
    problems: list[Problem],
    training: TrainingScales | None,
) -> _Filled | None:
    moves: list[Move] = []
    used: list[SourceSlice] = []
    complete = True
    for lens in container.lenses:
        found, count, provisions = moves_for(extents, checkpoint.resolved, lens.tensor, lens, container.shape)
        if count != lens.volume:
            complete = False
            problems.append(
                Problem(f"the source provides {count} of {lens.volume} elements of {lens.tensor}", where=container.name)
            )
        moves += found
        used += provisions
    if not complete:
        return None
    offset = float(container.rule.offset.evaluate(variables)) if container.rule.offset is not None else 0.0
    adds = {offset - provision.offset for provision in used}
    # ranks beyond the end of a padded axis hold zeros alone, in the dtype of the rest
    kin = used or [one for lens in container.lenses for one in checkpoint.resolved.all(lens.tensor)]
    dtypes = {provision.stored.meant or provision.stored.dtype for provision in kin}
    if len(adds) > 1:
        problems.append(Problem("its parts are stored with different offsets", where=container.name))
        return None
    addition = checkpoint.addition
    product = None
    if addition is not None and used:
        product = product_for(extents, addition, container.lenses, container.shape)
    # a sum fits no smaller type than its float32 terms; the user may ask for one
    dtype = dtypes.pop() if len(dtypes) == 1 and product is None else "float32"
    names = tuple(dict.fromkeys(_name(provision) for provision in used))
    if product is not None:
        factors = (extents.planned[move.extent].tensor for move in (*product.left, *product.right))
        names = tuple(dict.fromkeys((*names, *factors)))
    of = tuple(lens.tensor for lens in container.lenses)
    zeros = math.prod(container.shape) - sum(lens.volume for lens in container.lenses)
    moves.sort(key=lambda move: move.dst)
    experts = _experts(container)
    scales = None if product is not None else scales_of(training, checkpoint.resolved, container, experts)
    wanted = TensorSpec(container.name, container.shape, dtype, container.part, scales)
    add = adds.pop() if adds else 0.0
    as_stored = bool(add and rules.sum_as_stored.evaluate(variables))
    return _Filled(wanted, tuple(moves), add, zeros, of, names, experts, as_stored, product=product)


def _experts(container: Container) -> int:
    """How many experts lie one after another along the first dimension, which nothing else is in."""
    first = [[(p.axis, p.step) for p in lens.axes if p.dim == 0] for lens in container.lenses]
    return container.shape[0] if all(placed == [("expert", 1)] for placed in first) else 1


def _name(provision: SourceSlice) -> str:
    stored = provision.stored
    return f"{stored.part}/{stored.name}" if stored.part else stored.name


def _size(tensor: TensorSpec) -> int:
    return encoded_size(codecs.get(tensor.dtype), math.prod(tensor.shape))


def _main_dtype(tensors: Sequence[TensorSpec]) -> str:
    """The dtype that most elements of matrices have, those aside that are scaled into fp8."""
    elements: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and not tensor.dtype.startswith("float8"):
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(elements, key=lambda name: elements[name], default="float32")


def _written(rules: Layout, variables: Mapping[str, Any], tensors: Sequence[TensorSpec]) -> dict[str, tuple[str, Any]]:
    values = {**variables, "dtype": _main_dtype(tensors)}
    out: dict[str, tuple[str, Any]] = {}
    for entry in rules.write:
        try:
            if entry.when is None or entry.when.evaluate(values):
                out[entry.key] = (entry.kind, entry.value.evaluate(values))
        except (KeyError, TypeError, ArithmeticError) as error:
            raise UsageError(
                f"the {rules.format} layout cannot write {entry.key} = {entry.value.text}: {error}"
            ) from None
    return out


def _equality_checks(checkpoint: Checkpoint, extents: Extents) -> tuple[EqualityCheck, ...]:
    return tuple(
        _equality_check(extents, checkpoint, provision, like) for provision, like in checkpoint.resolved.equality_checks
    )


def _equality_check(extents: Extents, checkpoint: Checkpoint, provision: SourceSlice, like: str) -> EqualityCheck:
    """Compare what `provision` holds with the same box of canonical tensor `like`."""
    shape = tuple(p.high - p.low for p in provision.lens.axes)
    flat = tuple(Placement(p.axis, dim, 1, p.low, p.high) for dim, p in enumerate(provision.lens.axes))
    lens = Lens(like, flat, (0,) * len(shape))
    other, _, used = moves_for(extents, checkpoint.resolved, like, lens, shape)
    alone = Resolved({like: {(None, None): (provision,)}}, (), {})
    one, _, _ = moves_for(extents, alone, like, lens, shape)
    names = " and ".join(dict.fromkeys(map(_name, used)))
    if like == provision.lens.tensor:
        on_mismatch = Problem(
            f"differs from {names}, of which it is a later pipeline stage's own copy",
            where=_name(provision),
            cause="a file of another iteration or run, or a copy that went wrong",
            fix="copy the rank files again, or take another iteration: --iteration",
        )
    else:
        on_mismatch = Problem(
            f"differs from {names}, to which the configuration ties it",
            where=_name(provision),
            cause="the run was trained with untied embeddings",
            fix="--set tie_word_embeddings=false keeps both",
            check="tied-head",
        )
    return EqualityCheck(_name(provision), names, math.prod(shape), tuple(one), tuple(other), on_mismatch)


def _grouped(notices: Sequence[str]) -> list[str]:
    """Equal sentences once, with how often."""
    counts: dict[str, int] = {}
    for notice in notices:
        counts[notice] = counts.get(notice, 0) + 1
    return [notice if count == 1 else f"{notice} ({count} tensors)" for notice, count in counts.items()]
