"""What is kept of each golden case: how its configuration was read, and what its plans do.

Readable where a reader wants to see what changed (fields, origins, reasons, sentences), digests where not (moves and
headers). Paths are shown from the case's own path on; the order of files and the time of day are nowhere in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from golden_cases import ABSENT, Case
from golden_files import PARTS

from crossdock import delivery
from crossdock.errors import CrossdockError
from crossdock.formats import registry
from crossdock.formats.stored import Source
from crossdock.model.config import DEFAULTS, ResolvedConfig
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides, with_user_config
from crossdock.planning.plan import Plan

Record = dict[str, Any]
HERE = Path(__file__).parent
# sentences about single tensors of a mixture are many; which dtype each has is in the digest
SILENT = ("gguf-q4_k_m",)


def recorded(case: Case) -> Record:
    """What is kept of a case, each part a mapping:

    fields    canonical field -> value, as JSON; without those that have their default and were not read
    origins   canonical field -> where its value is from
    ignored   key of the source's configuration -> why nothing reads it
    plans     target -> digests of the plan
    notices, warnings, left out, refused   sentence -> where it is shown: targets, or "reading" or "opening"
    """
    given = Overrides(family=case.family, settings=case.settings)
    out: Record = {part: {} for part in PARTS}
    try:
        source = registry.open_source(case.path)
    except CrossdockError as error:
        return out | {"refused": dict.fromkeys(_problems(error, case.path), "reading")}
    keys = {**source.metadata, **case.changed}
    source = replace(
        source,
        metadata={key: value for key, value in keys.items() if value != ABSENT},
        tensors={key: tensor for key, tensor in source.tensors.items() if not fnmatch(key[1], case.without)},
    )
    try:
        checkpoint = delivery.interpret(source, given, case.base)
    except CrossdockError as error:
        return out | _refused(error, source, given, case.path)
    _add_reading(out, checkpoint.described, case.base or case.path)
    _add_plans(out, checkpoint, case)
    return out


def _refused(error: CrossdockError, source: Source, given: Overrides, path: Path) -> Record:
    """What is kept of a source that is refused: how its configuration is read, if it is the tensors that do not fit."""
    out: Record = {part: {} for part in ("fields", "ignored", "origins", "notices")}
    place = "reading"
    with contextlib.suppress(CrossdockError):
        _add_reading(out, describe(*with_user_config(source, given)).described, path)
        place = "opening"
    return out | {"refused": dict.fromkeys(_problems(error, path), place)}


def _add_reading(out: Record, described: ResolvedConfig, path: Path) -> None:
    for name, value in described.config.as_dict().items():
        if described.origins[name] == "default" and name in DEFAULTS and value == DEFAULTS[name]:
            continue
        out["fields"][name] = json.dumps(value, sort_keys=True)
        out["origins"][name] = _from_here(described.origins[name], path)
    out["ignored"] |= {key: _from_here(why, path) for key, why in described.ignored.items()}
    out["notices"] |= {_from_here(sentence, path): "reading" for sentence in described.notices}


def _add_plans(out: Record, checkpoint: Checkpoint, case: Case) -> None:
    shown: dict[str, dict[str, list[str]]] = {part: {} for part in ("warnings", "left out", "refused")}
    known = {*checkpoint.described.notices, *checkpoint.described.ignored}
    for name, options in case.targets.items():
        try:
            plan = delivery.plan(checkpoint, **options)
        except CrossdockError as error:
            for sentence in _problems(error, case.path):
                shown["refused"].setdefault(sentence, []).append(name)
            continue
        out["plans"][name] = digests(plan)
        for sentence in plan.warnings if name not in SILENT else ():
            if sentence not in known:
                shown["warnings"].setdefault(_from_here(sentence, case.path), []).append(name)
        for key, reason in plan.ignored.items():
            if key not in known:
                shown["left out"].setdefault(f"{key}: {_from_here(reason, case.path)}", []).append(name)
    for part, sentences in shown.items():
        out[part] = {sentence: " ".join(dict.fromkeys(targets)) for sentence, targets in sentences.items()}


def digests(plan: Plan) -> str:
    """Three digests of a plan: what is read, the files and their headers, and what fills each tensor.

    The configuration is not in them (it is kept field by field), so a field that is new and has its default changes
    none of them.
    """
    parts = {kind: hashlib.sha256() for kind in ("reads", "files", "tensors")}
    for record in plan.records():
        kind = "files" if "file" in record and "header" in record else "tensors" if "moves" in record else "reads"
        kept = {key: value for key, value in record.items() if key != "config"}
        parts["tensors" if "twin" in record else kind].update(json.dumps(kept).encode() + b"\n")
    return " ".join(f"{kind} {state.hexdigest()[:16]}" for kind, state in parts.items())


def _problems(error: CrossdockError, path: Path) -> list[str]:
    """What is wrong and where, of every problem."""
    return [
        _from_here(f"{type(error).__name__}: {problem.where}: {problem.what}".replace(": : ", ": "), path)
        for problem in error.problems
    ]


def _from_here(text: str, path: Path) -> str:
    """The text with the case's path replaced by a dot."""
    return text.replace(str(path), ".")
