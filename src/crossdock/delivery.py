"""The seven verbs: open, plan, run, export, verify, check, diff. Each is a few lines over the layers below."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.formats.options import Options
from crossdock.formats.stored import Source
from crossdock.io.system import documented_errors
from crossdock.layout.rules import layout
from crossdock.options import made
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides, with_user_config
from crossdock.planning.config.unproven import unproven
from crossdock.planning.plan import Plan
from crossdock.planning.planner import make_plan
from crossdock.planning.tensors.decodable import demand_decodable
from crossdock.planning.tensors.renames import renamed
from crossdock.planning.tensors.resolve import resolve
from crossdock.planning.tensors.wrappers import unwrapped
from crossdock.running.options import Progress, RunOptions, VerifyOptions, WriteOptions

if TYPE_CHECKING:  # an export does not wait for what it does not use
    from crossdock.running.check import CheckReport
    from crossdock.running.diff import DiffReport
    from crossdock.running.results import RunReport
    from crossdock.running.verify import VerifyReport

R = TypeVar("R", bound=RunOptions)


@documented_errors()
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
    if source.layout == "hf":
        source = unwrapped(source, source.layout)
    source, notices = renamed(source, overrides.renames, source.layout)
    notices = (*source.notices, *notices)
    stored, asked = source, overrides
    source, overrides = with_user_config(source, overrides)
    reading = describe(source, overrides)
    described = replace(
        reading.described,
        notices=(*notices, *reading.described.notices),
        unproven=unproven(stored, asked, reading),
    )
    reading = replace(reading, described=described)
    rules = layout(source.layout, reading.family)
    resolved = resolve(source, reading.family, reading.described, rules, reading.variables)
    return Checkpoint(source, reading.family, reading.described, reading.variables, rules, resolved)


def options(to: str) -> type[Options]:
    """The options of target `to`: a dataclass whose fields are the keyword arguments of `plan` and `export`.

    Raises UsageError.
    """
    return registry.options_type(to)


@documented_errors()
def plan(checkpoint: Checkpoint, to: str, **options: Any) -> Plan:
    """What writing `checkpoint` as `to` would do: pure data, made without reading tensor data.

    options  of the target, by name: see `options(to)`; sizes may be texts such as "2GiB"

    Raises UsageError, also for an option that the target does not have, PlanError, TokenizerError, FormatError for
    encodings that are not decoded.
    """
    made_target = registry.made_target(to, options)
    demand_decodable(checkpoint.source.tensors.values(), str(checkpoint.source.root))
    return make_plan(checkpoint, made_target)


def local_path(text: str | os.PathLike[str]) -> str:
    """`text`, an output as a person writes it. Raises UsageError for what is not a place on this machine."""
    from crossdock.running.destination import local_path as checked

    return checked(text)


def default_output(plan: Plan, label: str) -> Path:
    """Where an export goes that names no output; see `running.destination`."""
    from crossdock.running.destination import default_output as place

    return place(plan, label)


def destination(plan: Plan, output: str | os.PathLike[str]) -> Path:
    """Where `run(plan, output)` writes: a single file gets a name in a folder. Raises UsageError."""
    from crossdock.running.destination import destination as place

    return place(plan, output)


@documented_errors()
def run(plan: Plan, output: str | os.PathLike[str], **options: Any) -> RunReport:
    """Write a plan's output, or go on with an unfinished one. See `running.run.run` for the errors.

    options  `memory`, `workers`, `engine`, `progress`, `force`, `hash`, `fail_on`: see `running.options.WriteOptions`
    """
    from crossdock.running.run import run as run_plan

    return run_plan(plan, output, made(WriteOptions, options))


@documented_errors()
def verify(
    output: str | os.PathLike[str], against: str | os.PathLike[str] | Checkpoint | None = None, **options: Any
) -> VerifyReport:
    """Compare an output with its source, tensor by tensor and key by key. Reads both once, writes nothing.

    against  the source; None: only logits are compared, with those of a `reference` file
    options  of `running.options.VerifyOptions`: `tokens`, `logits`, `logits_engine`, `reference`, `strict`, `report`,
             `memory`, `workers`, `engine`, `progress`; and options of the target that the output does not show:
             `tokenizer`, `keep_order`

    `VerifyReport.checked` says what was held against what. An output that only an engine reads is compared by logits
    alone. Raises what `open` raises, MemoryPlanError, TokenizerError, and EnvironmentProblem when something that is
    needed is not installed.
    """
    from crossdock.proof.verdict import judged, sourceless
    from crossdock.running.verify import VerifyReport

    wanted, asked_of_target = _split(VerifyOptions, options)
    logits, report = wanted.logits, wanted.report
    path, named = Path(output), asked_of_target.get("tokenizer")
    named = None if named is None else Path(named)
    reference = None if wanted.reference is None else os.fspath(wanted.reference)
    if logits is None and (wanted.logits_engine, reference) != (None, None):
        raise UsageError("which text or tokens shall the logits be of?", fix='--logits "some text", or tokens.npy')
    if against is None:
        sourceless(reference, tokens=wanted.tokens, report=report is not None)
    checkpoint = against if isinstance(against, Checkpoint) else open(path if against is None else against)
    if report is not None:
        from crossdock.proof.report.page import Evidence, place, write

        place(Path(report))
    asked = None
    if logits is not None:
        from crossdock.proof.logits import answer, question

        asked = question(logits, wanted.logits_engine, checkpoint, path, named, reference)
    read = None
    if wanted.tokens:
        from crossdock.proof.tokens import check_tokens, tokenizer_of

        read = check_tokens(path, tokenizer_of(checkpoint, named))
    outcome, replay = VerifyReport(True, (), (), 0, 0.0), None
    if against is not None and (asked is None or not asked.alone):
        outcome, replay = _verify_files(path, checkpoint, asked_of_target, wanted)
    found = None
    if asked is not None:
        memory, progress = wanted.memory, wanted.progress
        found = answer(asked, checkpoint, lambda: _written(path, checkpoint), replay, memory=memory, progress=progress)
    outcome = judged(outcome, checkpoint.described.unproven, found, read, strict=wanted.strict)
    if report is not None:
        write(Path(report), Evidence(outcome, replay, path, checkpoint.source.root, checkpoint.source.format))
    return outcome


def _written(output: Path, source: Checkpoint) -> Checkpoint:
    """The output as a checkpoint. A GGUF holds Llama 3.1's rope divisors, not the numbers they come from; those are the
    source's, since comparing the files compares the divisors."""
    llama3 = source.config.rope_type == "llama3" and output.is_file()
    return open(output, set={"rope_scaling": json.dumps(dict(source.config.rope_scaling))} if llama3 else None)


def _verify_files(
    output: Path, checkpoint: Checkpoint, options: Mapping[str, Any], running: RunOptions
) -> tuple[VerifyReport, Plan]:
    """The report, and the plan that the output was held against."""
    from crossdock.running.verify import verify_plan

    theirs = registry.open_output(output)
    if theirs.format not in registry.targets():
        raise UsageError(
            f"{theirs.format} is not a format that crossdock writes, so it cannot be verified",
            where=str(output),
            expected=" or ".join(registry.targets()),
            fix="pass the output first and its source after it: verify OUT --against SRC",
        )
    target = registry.made_target(theirs.format, {**options, **registry.target(theirs.format).recorded(theirs)})
    replay = make_plan(checkpoint, target, {name: tensor.dtype for (_, name), tensor in theirs.tensors.items()})
    return verify_plan(replay, theirs, target.facts(output), running), replay


@documented_errors()
def check(
    output: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Hold an output against its manifest alone: files, sizes, sha256, and the tensors of a damaged file.

    manifest  default: `OUT.manifest.json`, beside the output

    Raises NotACheckpointError, UsageError (there is no manifest), FormatError (a broken one), EnvironmentProblem.
    """
    from crossdock.running.check import check_output

    return check_output(Path(output), None if manifest is None else Path(manifest), progress)


@documented_errors()
def diff(a: str | os.PathLike[str] | Checkpoint, b: str | os.PathLike[str] | Checkpoint, **options: Any) -> DiffReport:
    """Hold two checkpoints of any formats against each other, in canonical tensors and fields. Writes nothing.

    options  `memory`, `workers`, `engine`, `progress`: see `running.options.RunOptions`

    Raises what `open` raises, and MemoryPlanError.
    """
    from crossdock.running.diff import diff_checkpoints

    one, other = (side if isinstance(side, Checkpoint) else open(side) for side in (a, b))
    return diff_checkpoints(one, other, made(RunOptions, options))


@documented_errors()
def export(source: str | os.PathLike[str], output: str | os.PathLike[str], to: str, **options: Any) -> RunReport:
    """Open, plan and run in one call.

    options  all keyword arguments of `open`, `plan` and `run`
    """
    reading = {name: options.pop(name) for name in list(options) if name in _OPEN}
    writing, of_target = _split(WriteOptions, options)
    target = registry.made_target(to, of_target)
    from crossdock.running.run import run as run_plan

    local_path(output)
    return run_plan(make_plan(open(source, **reading), target), output, writing)


def _split(kind: type[R], options: Mapping[str, Any]) -> tuple[R, dict[str, Any]]:
    """Options of running, made, and the rest."""
    own = {one.name for one in fields(kind)}
    running = made(kind, {name: value for name, value in options.items() if name in own})
    return running, {name: value for name, value in options.items() if name not in own}


_OPEN = frozenset(signature(open).parameters) - {"path"}
