"""What a verification held against the source, and what it did not. Data, and the rule for tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from crossdock.errors import CrossdockError, Problem
from crossdock.formats.companions import GENERATION
from crossdock.formats.stored import Source
from crossdock.planning.plan import Plan
from crossdock.running.manifest import Manifest, manifest_path, read_manifest, vocabulary_hash

Done = str | Literal[False]  # how a part was compared; False: it was not
MANIFEST = "sha256 in the manifest"
KEYS = "sha256 of its keys in the manifest"
ABSENT = "neither side has one"


@dataclass(frozen=True, slots=True)
class Checked:
    """How each part of an output was compared, equal or not; False where it was held against nothing.

    tensors        "bytes": against what the source gives
    configuration  "keys": of the output's headers and small files, but for information (`general.*` of GGUF)
    tokenizer      "bytes" of its files; "vocabulary": every tokenizer key of a GGUF; "sha256 in the manifest" or,
                   of a GGUF, "sha256 of its keys in the manifest"
    token_ids      "llama.cpp"; "the same files" where the tokenizer's bytes were compared
    logits         who computed the output's, and who the source's
    """

    tensors: Done = False
    configuration: Done = False
    tokenizer: Done = False
    token_ids: Done = False
    logits: Done = False

    def unchecked(self) -> Iterator[str]:
        """The names of the parts that were not compared."""
        return (one.name for one in fields(self) if getattr(self, one.name) is False)


def tokenizer_checked(plan: Plan, output: Source, facts: Mapping[str, Any]) -> Done:
    """How holding `output` against `plan` compares the tokenizer. facts: what the output's header says."""
    if plan.single_file:
        if any(key.startswith("tokenizer.") for key in plan.facts):
            return "vocabulary"
        return False if any(key.startswith("tokenizer.ggml.tokens") for key in facts) else ABSENT
    planned = {file.name for file in plan.files}
    stored = tokenizer_files(output)
    if not stored and not any(name.startswith(("tokenizer", "vocab.json")) for name in planned):
        return ABSENT
    return "bytes" if stored and stored <= planned else False


def tokenizer_files(output: Source) -> set[str]:
    """The names, in the output's folder, of the files of its tokenizer."""
    return {
        path.relative_to(output.root).as_posix()
        for path in output.companion_files
        if path.name != GENERATION and path.is_relative_to(Path(output.root))
    }


def tokenizer_by_manifest(output: Path, stored: Source, facts: Mapping[str, Any]) -> tuple[Done, tuple[Problem, ...]]:
    """Hold the tokenizer of an output against the manifest beside it, and what differs: the sha256 of every file of it,
    or of the tokenizer keys of a GGUF. facts: what the output's header says.

    False where the manifest is missing or names no tokenizer, or the folder has tokenizer files that it does not name.
    """
    try:
        manifest = read_manifest(manifest_path(output.absolute()))
    except (CrossdockError, OSError, ValueError):
        return False, ()
    if manifest.single_file:
        return _vocabulary_by_manifest(output, manifest, facts)
    known = {file.name: file.sha256 for file in manifest.files if file.sha256}
    names = tokenizer_files(stored)
    if not manifest.tokenizer or not names or not names <= known.keys():
        return False, ()
    wrong = tuple(
        Problem("is not the tokenizer's file that was exported", where=str(output / name),
                expected=f"sha256 {known[name][:16]}… in the manifest", fix="pass the tokenizer with --tokenizer")
        for name in sorted(names)
        if hashlib.sha256((output / name).read_bytes()).hexdigest() != known[name]
    )  # fmt: skip
    return MANIFEST, wrong


def _vocabulary_by_manifest(
    output: Path, manifest: Manifest, facts: Mapping[str, Any]
) -> tuple[Done, tuple[Problem, ...]]:
    if not manifest.vocabulary:
        return False, ()
    found = vocabulary_hash(facts)
    if found == manifest.vocabulary:
        return KEYS, ()
    wrong = Problem(
        "the tokenizer's keys are not those that were exported", where=str(output),
        expected=f"sha256 {manifest.vocabulary[:16]}… in the manifest",
        got="no vocabulary" if found is None else f"{found[:16]}…", fix="pass the tokenizer with --tokenizer",
    )  # fmt: skip
    return KEYS, (wrong,)
