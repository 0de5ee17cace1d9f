"""The six verbs: open, plan, run, export, verify, diff. Each is a few lines over the layers below."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.codecs import registry as codecs
from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.formats.stored import Source
from crossdock.formats.target import Parallel, Request, Target
from crossdock.layout.rules import layout
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import LAYOUT_OF, Overrides, with_user_config
from crossdock.planning.plan import Plan
from crossdock.planning.planner import make_plan
from crossdock.planning.tensors.renames import renamed
from crossdock.planning.tensors.resolve import resolve
from crossdock.running.memory import workers_for

if TYPE_CHECKING:  # an export does not wait for what it does not use
    from crossdock.running.diff import DiffReport
    from crossdock.running.results import RunReport
    from crossdock.running.run import Progress
    from crossdock.running.verify import VerifyReport

MEMORY = 256 << 20


def open(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    iteration: int | None = None,
    family: str | None = None,
    config: str | os.PathLike[str] | None = None,
    set: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    base: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Open a checkpoint of any format that crossdock reads. Headers only; no tensor data is read.

    format     force a source format; iteration: of a Megatron run; family: instead of the derived one: a name,
               or the path of a family file
    config     Hugging Face config.json (or its folder), or JSON with Megatron's args or TransformerConfig, that gives
               or overrides the configuration
    set        single fields, in canonical or the format's own names: {"rotary_base": "500000"}
    rename     stored names of own making -> those of the format, see `planning.renames`
    base       the model that `path` is an adapter of: what is opened is that model with the adapter merged into it

    Raises NotACheckpointError, FormatError, UnsafePickleError, ConfigError, PlanError, UsageError.
    """
    source = registry.open_source(Path(path), format=format, iteration=iteration)
    overrides = overrides_from(family=family, config=config, set=set, rename=rename)
    return interpret(source, overrides, None if base is None else Path(base))


def overrides_from(
    *,
    family: str | None = None,
    config: str | os.PathLike[str] | None = None,
    set: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> Overrides:
    """What the user says about the model, with the `--config` file read."""
    if config is None:
        return Overrides(family, dict(set or {}), renames=dict(rename or {}))
    from crossdock.formats.hf.config import flattened
    from crossdock.formats.hf.source import read_json
    from crossdock.formats.megatron.args import args_of_config

    keys, where = read_json(Path(config))
    args = args_of_config(keys)
    if args is not None:
        return Overrides(family, dict(set or {}), args, where, "megatron", dict(rename or {}))
    return Overrides(family, dict(set or {}), flattened(keys, where), where, renames=dict(rename or {}))


def interpret(source: Source, overrides: Overrides, base: Path | None = None) -> Checkpoint:
    """Give a source its meaning: family, configuration, and where every canonical tensor lies.

    base  the model that `source` is an adapter of: the result is that model with the adapter added;
          `overrides` are about it
    """
    if base is not None:
        from crossdock.planning.merge import merged

        return merged(interpret(registry.open_source(base), overrides), interpret(source, Overrides()))
    source, notices = renamed(source, overrides.renames, LAYOUT_OF.get(source.format, source.format))
    source, overrides = with_user_config(source, overrides)
    reading = describe(source, overrides)
    reading = replace(reading, described=replace(reading.described, notices=(*notices, *reading.described.notices)))
    rules = layout(LAYOUT_OF.get(source.format, source.format), reading.family)
    resolved = resolve(source, reading.family, reading.described, rules, reading.variables)
    return Checkpoint(source, reading.family, reading.described, reading.variables, rules, resolved)


def plan(
    checkpoint: Checkpoint,
    to: str,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    pre_tokenizer: str | None = None,
    max_shard_size: int = 5_000_000_000,
    tp: int = 1,
    pp: int = 1,
    moe_tp: int = 0,
    moe_ep: int = 0,
    use_parallel_embedding: bool = False,
    embedding_sharding_dim: int = 0,
    fp8_kv_cache: bool = False,
    allow_overflow: bool = False,
    keep_order: bool = False,
) -> Plan:
    """What writing `checkpoint` as `to` would do: pure data, made without reading tensor data.

    dtype     of large tensors: "auto" (as stored), or any codec name or alias ("bf16")
    quantize  block codec for matrices ("q8_0"); max_shard_size: bytes, for formats with shards
    tp, pp    ranks, for formats with rank files; moe_tp * moe_ep = tp: how they share experts (0: what is left over)
    allow_overflow  let values become inf where the target minds
    keep_order  leave an optimizer's vectors in the order in which they are stored (gguf-checkpoint)

    Raises UsageError, PlanError, TokenizerError.
    """
    target = registry.target(to)
    request = Request(
        dtype=dtype if dtype == "auto" else codecs.canonical_name(dtype),
        quantize=None if quantize is None else _quantisation(quantize, target),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        pre_tokenizer=pre_tokenizer,
        max_shard_size=max_shard_size,
        companion_files=checkpoint.source.companion_files,
        parallel=Parallel(tp, pp, moe_tp, moe_ep, use_parallel_embedding, embedding_sharding_dim),
        allow_overflow=allow_overflow,
        keep_order=keep_order,
        fp8_kv_cache=fp8_kv_cache,
    )
    return make_plan(checkpoint, target, request)


def _quantisation(name: str, target: Target) -> str:
    """A codec's one name, or what the target alone knows under this name ("w8a16", "fp8_static")."""
    own = name.lower().replace("-", "_")
    if own not in target.quantizations and any(
        own in registry.target(other).quantizations for other in registry.targets()
    ):
        with contextlib.suppress(UsageError):
            return codecs.canonical_name(name)
        known = f"-q {' or '.join(target.quantizations)}" if target.quantizations else ""
        raise UsageError(f"{target.name} has no quantisation {own}", expected=known)
    return own if own in target.quantizations else codecs.canonical_name(name)


def run(
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    memory: int = MEMORY,
    workers: int | None = None,
    force: bool = False,
    hash: str = "xxh3",
    fail_on: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> RunReport:
    """Write a plan's output, or go on with an unfinished one. See `running.run.run` for the errors."""
    from crossdock.running.run import run as run_plan

    return run_plan(
        plan, Path(output), memory=memory, workers=workers, force=force, hash=hash, fail_on=fail_on, progress=progress
    )


def verify(
    output: str | os.PathLike[str],
    against: str | os.PathLike[str] | Checkpoint,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    keep_order: bool = False,
    tokens: bool = False,
    logits: str | Sequence[int] | None = None,
    engine: str | None = None,
    report: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare an output with its source, tensor by tensor and key by key. Reads both once, writes nothing.

    tokens  also compare llama.cpp's token ids of hard texts with the source's tokenizer's
    logits  a text, "@file", or token ids ("1,2,3" or numbers): also compare what both compute on it
    engine  "llama.cpp", "transformers" or "onnxruntime" computes the output's side; default: the reference forward
    report  a file to write: the outcome as one page of HTML that needs nothing else

    An output that only an engine reads is compared by logits alone. Raises what `open` raises, MemoryPlanError,
    TokenizerError, and EnvironmentProblem when something that is needed is not installed.
    """
    from crossdock.running.verify import VerifyReport

    checkpoint = against if isinstance(against, Checkpoint) else open(against)
    path, named = Path(output), None if tokenizer is None else Path(tokenizer)
    request = Request(tokenizer=named, companion_files=checkpoint.source.companion_files, keep_order=keep_order)
    if report is not None:
        from crossdock.proof.report.page import Evidence, place, write

        place(Path(report))
    if logits is None and engine is not None:
        raise UsageError("an engine computes logits; say for which text", fix='--logits "some text"')
    asked = None
    if logits is not None:
        from crossdock.proof.logits import answer, question

        asked = question(logits, engine, checkpoint, path, named)
    read = None
    if tokens:
        from crossdock.proof.tokens import check_tokens, tokenizer_of

        read = check_tokens(path, tokenizer_of(checkpoint, named))
    outcome, replay = VerifyReport(True, (), (), 0, 0.0), None
    if asked is None or not asked.alone:
        outcome, replay = _verify_files(path, checkpoint, request, memory, workers, progress)
    if asked is not None:
        found = answer(asked, checkpoint, lambda: _written(path, checkpoint), replay, memory=memory, progress=progress)
        outcome = replace(outcome, ok=outcome.ok and found.ok, logits=found)
    if read is not None:
        outcome = replace(outcome, ok=outcome.ok and read.ok, tokens=read)
    if report is not None:
        write(Path(report), Evidence(outcome, replay, path, checkpoint.source.root, checkpoint.source.format))
    return outcome


def _written(output: Path, source: Checkpoint) -> Checkpoint:
    """The output as a checkpoint. A GGUF holds Llama 3.1's rope divisors, not the numbers they come from; those are the
    source's, since comparing the files compares the divisors."""
    llama3 = source.config.rope_type == "llama3" and output.is_file()
    return open(output, set={"rope_scaling": json.dumps(dict(source.config.rope_scaling))} if llama3 else None)


def _verify_files(
    output: Path,
    checkpoint: Checkpoint,
    request: Request,
    memory: int,
    workers: int | None,
    progress: Progress | None,
) -> tuple[VerifyReport, Plan]:
    """The report, and the plan that the output was held against."""
    from crossdock.running.verify import verify_plan

    theirs = registry.open_output(output)
    if theirs.format not in registry.targets():
        raise UsageError(
            f"{theirs.format} is not a target, so there is nothing to verify it against",
            where=str(output),
            expected=" or ".join(registry.targets()),
            fix="OUT, what was written, comes first; what it was made from follows --against",
        )
    target = registry.target(theirs.format)
    request = replace(request, encodings={name: tensor.dtype for (_, name), tensor in theirs.tensors.items()})
    replay = make_plan(checkpoint, target, target.request_from_output(request, theirs))
    workers = workers or workers_for(memory)
    facts = target.facts(output)
    return verify_plan(replay, theirs, facts, memory=memory, workers=workers, progress=progress), replay


def diff(
    a: str | os.PathLike[str] | Checkpoint,
    b: str | os.PathLike[str] | Checkpoint,
    *,
    memory: int = MEMORY,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Hold two checkpoints of any formats against each other, in canonical tensors and fields. Writes nothing.

    Raises what `open` raises, and MemoryPlanError.
    """
    from crossdock.running.diff import diff_checkpoints

    one, other = (side if isinstance(side, Checkpoint) else open(side) for side in (a, b))
    return diff_checkpoints(one, other, memory=memory, workers=workers or workers_for(memory), progress=progress)


def export(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    to: str,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    tp: int = 1,
    pp: int = 1,
    memory: int = MEMORY,
    workers: int | None = None,
    force: bool = False,
) -> RunReport:
    """Open, plan and run in one call."""
    planned = plan(open(source), to, dtype=dtype, quantize=quantize, tokenizer=tokenizer, tp=tp, pp=pp)
    return run(planned, output, memory=memory, workers=workers, force=force)
