"""Files that go along with a model: its tokenizer and generation_config.json, copied byte for byte into a folder.

Never changes what is in them; a tokenizer is only read for its special ids and to count its tokens. Of a vocabulary
that a GGUF file brings along, files are made. File names: `tokenizers.files`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import InputError
from crossdock.formats.gguf.vocabulary import tokenizer_of, vocabulary_in
from crossdock.formats.stored import SourceFile
from crossdock.formats.target import Findings, TargetFile

if TYPE_CHECKING:  # most sources bring none along
    from crossdock.tokenizers import Tokenizer

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
GENERATION = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a configuration


def found_in(folder: Path) -> Iterator[Path]:
    """What travels with the model in `folder`; of a tokenizer that is not complete nothing.

    Raises FormatError for a broken generation_config.json: transformers loads no model beside one.
    """
    from crossdock.tokenizers.files import find, read_json

    try:
        for _, file in find(folder).companion_files:
            yield file
    except InputError:  # no tokenizer here, or none that is complete: the model can be read all the same
        pass
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)
        yield folder / GENERATION


@dataclass(frozen=True, slots=True)
class CompanionFiles:
    """What goes along with a model. tokenizer: what its files say, where that can be read and was worth reading."""

    files: tuple[TargetFile, ...]
    tokenizer: Tokenizer | None
    warnings: tuple[str, ...]


def companion_files_for(chosen: Path | None, findings: Findings) -> CompanionFiles:
    """Files that go along, and a warning when there is no tokenizer among them.

    A tokenizer that was given replaces the source's. Of a GGUF file the vocabulary is taken and made into files.
    Raises TokenizerError when what was given is none, or is for another model; OSError.
    """
    vocabulary = vocabulary_in(chosen, findings.companions)
    found = {path.name: path for path in findings.companions if path != vocabulary}
    if chosen is not None:
        from crossdock.tokenizers import find

        tokenizer_files = () if vocabulary is not None else find(chosen).companion_files
        found = {name: path for name, path in found.items() if name == GENERATION} | dict(tokenizer_files)
    sources = {name: SourceFile.of(path) for name, path in found.items()}
    files = tuple(TargetFile(name, source.size, b"", source) for name, source in sources.items())
    if vocabulary is not None:
        return _made(vocabulary, files, chosen, findings)
    home = next((found[name].parent for name in VOCABULARIES if name in found), None)
    if home is None:
        lacking = "no tokenizer: the folder computes but cannot read text; add one with --tokenizer FOLDER"
        return CompanionFiles(files, None, (lacking,))
    if chosen is None and any(getattr(findings.config, name) is not None for name in IDS):
        return CompanionFiles(files, None, ())
    from crossdock.tokenizers import read

    try:
        tokenizer = read(chosen or home)
    except InputError:  # a kind that crossdock does not read travels all the same
        return CompanionFiles(files, None, ())
    return CompanionFiles(files, tokenizer, () if chosen is None else _beyond(tokenizer, chosen, findings))


def _made(vocabulary: Path, files: tuple[TargetFile, ...], chosen: Path | None, findings: Findings) -> CompanionFiles:
    try:
        tokenizer = tokenizer_of(vocabulary, findings.config.vocab_size, findings.vocab_from)
    except InputError as error:
        if chosen is not None:
            raise
        return CompanionFiles(files, None, (f"no tokenizer in the folder: {error.problems[0].what}",))
    from crossdock.tokenizers import hf_differences, hf_files

    made = [TargetFile(name, len(content), content) for name, content in hf_files(tokenizer).items()]
    return CompanionFiles((*files, *made), tokenizer, hf_differences(tokenizer))


def _beyond(tokenizer: Tokenizer, chosen: Path, findings: Findings) -> tuple[str, ...]:
    """A sentence when the tokenizer that was given has more tokens than the embedding has rows, or far fewer."""
    size = len(tokenizer.tokens)
    if size <= findings.config.vocab_size:
        from crossdock.tokenizers import too_few

        return too_few(tokenizer, findings.config.vocab_size)
    return (
        f"the tokenizer in {chosen} has {size} tokens, the embedding only {findings.config.vocab_size} rows "
        f"({findings.vocab_from}): the last {size - findings.config.vocab_size} tokens cannot be computed",
    )
