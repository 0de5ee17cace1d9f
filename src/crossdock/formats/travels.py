"""Files that go along with a model: its tokenizer and generation_config.json, copied byte for byte into a folder.

Never changes what is in them; a tokenizer is only read to count its tokens for a warning.
File names: `tokenizers.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from crossdock.errors import InputError
from crossdock.formats.stored import SourceFile
from crossdock.formats.target import Request, TargetFile
from crossdock.model.config import ModelConfig

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
GENERATION = "generation_config.json"


def found_in(folder: Path) -> Iterator[Path]:
    """What travels with the model in `folder`; of a tokenizer that is not complete nothing.

    Raises FormatError for a broken generation_config.json: transformers loads no model beside one.
    """
    from crossdock import tokenizers

    try:
        for _, file in tokenizers.find(folder).travels:
            yield file
    except InputError:  # no tokenizer here, or none that is complete: the model can be read all the same
        pass
    if (folder / GENERATION).is_file():
        tokenizers.files.read_json(folder / GENERATION)
        yield folder / GENERATION


def travelling(request: Request) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Files that go along, by their name in the folder, and a warning when there is no tokenizer among them.

    A tokenizer that was given replaces the source's. Raises TokenizerError when it is none.
    """
    from crossdock import tokenizers

    found = {path.name: path for path in request.travels}
    if request.tokenizer is not None:
        given = tokenizers.find(request.tokenizer)
        kept = {name: path for name, path in found.items() if name == GENERATION}
        found = {**kept, **dict(given.travels)}
    if not any(name in found for name in VOCABULARIES):
        return found, ("no tokenizer: the folder computes but cannot read text; add one with --tokenizer FOLDER",)
    return found, ()


def copies(travels: Mapping[str, Path]) -> list[TargetFile]:
    """The files of `travelling` as files of the target. Raises OSError."""
    sources = {name: SourceFile.of(path) for name, path in travels.items()}
    return [TargetFile(name, source.size, b"", source) for name, source in sources.items()]


def beyond(request: Request, config: ModelConfig) -> tuple[str, ...]:
    """A sentence when the tokenizer that was given has more tokens than the embedding has rows, or far fewer."""
    from crossdock import tokenizers

    if request.tokenizer is None:
        return ()
    try:
        tokenizer = tokenizers.read(request.tokenizer)
    except InputError:  # a kind that crossdock does not read travels all the same
        return ()
    size = len(tokenizer.tokens)
    if size <= config.vocab_size:
        return tokenizers.too_few(tokenizer, config.vocab_size)
    return (
        f"the tokenizer in {request.tokenizer} has {size} tokens, the embedding only {config.vocab_size} rows "
        f"({request.vocab_from}): the last {size - config.vocab_size} tokens cannot be computed",
    )
