"""Step 5: files, the place of every tensor in them, and all that a reader of the plan should know."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.formats.companions import GENERATION
from crossdock.formats.gguf.vocabulary import vocabulary_in
from crossdock.formats.stored import SourceFile
from crossdock.formats.target import Assembled, State, Target
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.estimate import parameters
from crossdock.planning.plan import Plan, TargetTensor
from crossdock.planning.steps.extras import Complete
from crossdock.planning.steps.sources import Fill
from crossdock.tokenizers.files import find


def assemble(checkpoint: Checkpoint, target: Target[Any], complete: Complete) -> Plan:
    """The plan. Raises PlanError, TokenizerError, UsageError as the target finds them."""
    encoded = complete.encoded
    sourced, places = encoded.sourced, encoded.sourced.places
    assembled = target.assemble([fill.spec for fill in complete.fills], complete.findings)
    unsupported = _unsupported(checkpoint, places.rules.unsupported)
    return Plan(
        source_format=checkpoint.source.format,
        source_root=checkpoint.source.root,
        replaces=checkpoint.replaces,
        target_format=target.name,
        single_file=target.single_file,
        sources=checkpoint.source.files,
        extents=sourced.extents,
        files=assembled.files,
        tensors=_placed(complete.fills, assembled),
        described=checkpoint.described,
        equality_checks=sourced.equality_checks,
        facts=assembled.facts,
        warnings=(
            *(f"not proven: {sentence}" for sentence in checkpoint.described.unproven),
            *checkpoint.described.notices,
            *checkpoint.resolved.notices,
            *places.ranks.warnings,
            *sourced.warnings,
            *(warn.sentence for warn in places.rules.writing.warn if warn.condition.evaluate(places.variables)),
            *(f"NOT carried over: {', '.join(names)}; {sentence}" for sentence, names in unsupported.items()),
            *encoded.warnings,
            *sourced.state.warnings,
            *assembled.warnings,
        ),
        ignored=_ignored(checkpoint, sourced.state, unsupported),
        settings={"dtype": target.options.dtype, "quantize": target.options.quantize, **places.ranks.settings},
        fail_on=assembled.fail_on,
        ranks=assembled.ranks,
        parameters=parameters(checkpoint.family, checkpoint.config),
        own_names=target.own_names,
        iteration=_iteration(checkpoint.source.notes),
        weights="master" if any(tensor.rounds_to for tensor in checkpoint.source.tensors.values()) else "model",
        **_tokenizer(checkpoint, target),
    )


def _iteration(notes: Mapping[str, str]) -> int | None:
    text = notes.get("iteration", "")
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _tokenizer(checkpoint: Checkpoint, target: Target[Any]) -> dict[str, Any]:
    """The files of the tokenizer that goes along, where the target takes one: the option's, else the source's."""
    if not hasattr(target.options, "tokenizer"):
        return {}
    named = target.options.tokenizer
    paths = [path for path in checkpoint.source.companion_files if path.name != GENERATION]
    if named is not None:
        paths = [named] if vocabulary_in(named, ()) else [path for _, path in find(named).companion_files]
    files = tuple(SourceFile.of(path) for path in paths)
    return {"tokenizer": files, "tokenizer_from": "source" if named is None else "option"} if files else {}


def _placed(fills: Sequence[Fill], assembled: Assembled) -> tuple[TargetTensor, ...]:
    """The target's tensors at their places."""
    return tuple(
        replace(tensor, file=file, offset=offset, nbytes=_size(tensor))
        for (_, tensor), (file, offset) in zip(fills, assembled.places, strict=True)
    )


def _size(tensor: TargetTensor) -> int:
    if tensor.data is not None:
        return len(tensor.data)
    return encoded_size(codecs.get(tensor.dtype), math.prod(tensor.shape))


def _unsupported(checkpoint: Checkpoint, unsupported: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Sentence -> the stored names of what the target's layout has no place for and says so."""
    out: dict[str, tuple[str, ...]] = {}
    for glob, sentence in unsupported.items():
        resolved = checkpoint.resolved
        names = [one.shown for n in resolved.provisions if fnmatch.fnmatchcase(n, glob) for one in resolved.all(n)]
        if names:
            out[sentence] = tuple(dict.fromkeys(names))
    return out


def _ignored(checkpoint: Checkpoint, state: State, unsupported: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Names that are left out, and why: what nothing reads and the target has no place for, without what is carried."""
    carried = {one.stored.name for one in state.carried}
    unread = {name: why for name, why in checkpoint.resolved.unread.items() if name not in carried}
    left = {name: why for why, names in unsupported.items() for name in names}
    return {**unread, **left, **checkpoint.described.ignored}
