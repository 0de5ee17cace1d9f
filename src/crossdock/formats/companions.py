"""Files that go along with a model: its tokenizer and generation_config.json, copied byte for byte into a folder.

Never changes what is in them. Every tokenizer is read: a damaged one, or one of another model, is an error. Of a
vocabulary that transformers could not load, files are made. File names: `tokenizers.files`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossdock.errors import InputError, TokenizerError
from crossdock.formats.gguf.vocabulary import is_gguf, tokenizer_of, vocabulary_in
from crossdock.formats.stored import SourceFile
from crossdock.formats.target import Findings, TargetFile
from crossdock.tokenizers.files import CHAT_TEMPLATES_FOLDER, TRAVELLING, find, read_json
from crossdock.tokenizers.folder import hf_folder
from crossdock.tokenizers.gguf_metadata import no_end, too_few
from crossdock.tokenizers.hf_files import hf_differences, hf_files
from crossdock.tokenizers.reading import read
from crossdock.tokenizers.tokenizer import Tokenizer

GENERATION = "generation_config.json"
_FOLDERS = ("additional_chat_templates", "chat_templates")
NAMES = (GENERATION, *TRAVELLING, f"{CHAT_TEMPLATES_FOLDER}/*.jinja")  # all that may travel
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a configuration
NO_TOKENIZER = "the output has no tokenizer; add one with --tokenizer FOLDER"


def found_in(folder: Path) -> Iterator[Path]:
    """What travels with the model in `folder`; of a tokenizer that is not complete nothing.

    Raises FormatError for a broken generation_config.json: transformers loads no model beside one.
    """
    try:
        for _, file in find(folder).companion_files:
            yield file
    except InputError:  # no tokenizer here, or none that is complete: the model can be read all the same
        pass
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)
        yield folder / GENERATION


def tokenizer_at(chosen: Path | None, findings: Findings) -> Path | None:
    """Where the tokenizer lies: as `--tokenizer` says, else the source's own folder, where it brings one along."""
    if chosen is not None:
        return chosen
    own = (path for path in findings.companions if path.name != GENERATION and not is_gguf(path))
    return next((path.parent.parent if path.suffix == ".jinja" and path.parent.name in _FOLDERS else path.parent
                 for path in own), None)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CompanionFiles:
    """What goes along with a model. tokenizer: what its files say, where that can be read and was worth reading."""

    files: tuple[TargetFile, ...]
    tokenizer: Tokenizer | None
    warnings: tuple[str, ...]


def companion_files_for(chosen: Path | None, findings: Findings) -> CompanionFiles:
    """Files that go along, and a warning when there is no tokenizer among them, or when no end of text is known.

    A tokenizer that was given replaces the source's. Where transformers could not load its files, those that it can
    load are made; of a GGUF file the vocabulary is taken and made into files.
    Raises FormatError for a damaged tokenizer, TokenizerError for one of another model; OSError.
    """
    generation = tuple(_copied(path.name, path) for path in findings.companions if path.name == GENERATION)
    vocabulary = vocabulary_in(chosen, findings.companions)
    if vocabulary is not None:
        return _made(vocabulary, generation, chosen, findings)
    home = tokenizer_at(chosen, findings)
    if home is None:
        return CompanionFiles(generation, None, (NO_TOKENIZER,))
    files = find(home)
    try:
        tokenizer = read(home)
        copied, made, warnings = hf_folder(files, tokenizer)
    except TokenizerError as error:  # a kind that crossdock does not read travels all the same
        problem = error.problems[0]
        kept = tuple(_copied(name, path) for name, path in files.companion_files)
        what = f"the tokenizer is copied unchanged and was not compared with the model: {problem.what}"
        return CompanionFiles((*generation, *kept), None, (f"{what} ({problem.got})" if problem.got else what,))
    _demand_rows(len(tokenizer.tokens), findings, home)
    contents = [TargetFile(name, len(content), content) for name, content in made.items()]
    along = (*generation, *(_copied(name, path) for name, path in copied.items()), *contents)
    lacking = no_end(tokenizer) if findings.config.eos_token_id is None else ()
    return CompanionFiles(along, tokenizer, (*too_few(tokenizer, findings.config.vocab_size), *warnings, *lacking))


def _copied(name: str, path: Path) -> TargetFile:
    source = SourceFile.of(path)
    return TargetFile(name, source.size, b"", source)


def _made(vocabulary: Path, files: tuple[TargetFile, ...], chosen: Path | None, findings: Findings) -> CompanionFiles:
    try:
        tokenizer = tokenizer_of(vocabulary, findings.config.vocab_size, findings.vocab_from)
    except TokenizerError as error:
        if chosen is not None:
            raise
        return CompanionFiles(files, None, (f"no tokenizer in the folder: {error.problems[0].what}",))
    made = [TargetFile(name, len(content), content) for name, content in hf_files(tokenizer).items()]
    return CompanionFiles((*files, *made), tokenizer, (*hf_differences(tokenizer), *no_end(tokenizer)))


def _demand_rows(size: int, findings: Findings, home: Path) -> None:
    """Every token has a row in the embedding."""
    rows = findings.config.vocab_size
    if size <= rows:
        return
    raise TokenizerError(
        f"the tokenizer has {size - rows} tokens beyond the model's embedding",
        where=str(home),
        expected=f"ids below {rows}, the rows of the embedding"
        + (f" ({findings.vocab_from})" if findings.vocab_from else ""),
        got=f"{size} tokens",
        cause="the tokenizer of another model, tokens added after training, or a vocabulary clipped too far",
        fix="--tokenizer with the files the model was trained with",
    )
