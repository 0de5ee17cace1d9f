"""`verify`: an output is held against its source."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.delivery.opening import open
from crossdock.delivery.planning import planned
from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.io.system import documented_errors
from crossdock.options import split
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Plan
from crossdock.proof.logits import answer, question
from crossdock.proof.report.page import Evidence, place, write
from crossdock.proof.tokens import check_tokens, tokenizer_of
from crossdock.proof.verdict import judged, sourceless
from crossdock.running.options import RunOptions, VerifyOptions
from crossdock.running.verify import VerifyReport, verify_plan


@documented_errors()
def verify(
    output: str | os.PathLike[str], against: str | os.PathLike[str] | Checkpoint | None = None, **options: Any
) -> VerifyReport:
    """Compare an output with its source, tensor by tensor and key by key. Both are read once; nothing is written.

    output   path of the output
    against  path of the source, or what `open` returned; None: only logits are compared, with those of a `reference`
    options  fields of `running.options.VerifyOptions` (`tokens`, `logits`, `logits_engine`, `reference`, `strict`,
             `report`, `memory`, `workers`, `engine`, `progress`), and those options of the target that an output does
             not show (`tokenizer`, `keep_order`, `pre_tokenizer`)

    What was compared with what is in `VerifyReport.checked`; an output that only an engine reads is compared by logits
    alone. Raises what `open` raises, MemoryPlanError, TokenizerError, and EnvironmentProblem for a package that is not
    installed.
    """
    wanted, asked_of_target = split(VerifyOptions, options)
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
        place(Path(report))
    asked = None
    if logits is not None:
        asked = question(logits, wanted.logits_engine, checkpoint, path, named, reference)
    read = None
    if wanted.tokens:
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
    theirs = registry.open_output(output)
    if theirs.format not in registry.targets():
        raise UsageError(
            f"{theirs.format} is not a format that crossdock writes, so it cannot be verified",
            where=str(output),
            expected=" or ".join(registry.targets()),
            fix="pass the output first and its source after it: verify OUT --against SRC",
        )
    target = registry.made_target(theirs.format, {**options, **registry.target(theirs.format).recorded(theirs)})
    fixed = {name: tensor.dtype for (_, name), tensor in theirs.tensors.items()}
    replay = planned(checkpoint, target, fixed)
    return verify_plan(replay, theirs, target.facts(output), running), replay
