"""Does llama.cpp read text from a GGUF as the source's own tokenizer does? Ids against ids, on texts made to differ.

The engine is the wheel xllamacpp in a process of its own; the source's tokenizer runs in the library that owns its
kind: huggingface/tokenizers for tokenizer.json, google/sentencepiece for tokenizer.model. Nothing is re-implemented.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdock.errors import EnvironmentProblem, TokenizerError, UsageError
from crossdock.formats.gguf.container import read_header
from crossdock.planning.checkpoint import Checkpoint
from crossdock.proof.engines.ask import ask
from crossdock.proof.engines.registry import engine
from crossdock.running.comparisons import TokenDifference, TokensReport
from crossdock.tokenizers.files import TOKENIZER_JSON, TOKENIZER_MODEL, TokenizerFiles, find
from crossdock.tokenizers.hard_texts import HARD_TEXTS, around
from crossdock.tokenizers.reading import read as read_tokenizer
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType

EXTRA = 'pip install "crossdock[tokens]"'
TIMEOUT = 300.0  # seconds for a vocabulary
SPECIAL = 16  # special tokens that are tried within text, at most
TIE = 1e-4  # log probabilities closer than this are equal: sentencepiece adds in float32, llama.cpp in float64


def tokenizer_of(checkpoint: Checkpoint, chosen: Path | None) -> Path | None:
    """Where the tokenizer of `checkpoint` lies: as `chosen`, else the folder of a vocabulary that travels with it."""
    vocabularies = (TOKENIZER_JSON, TOKENIZER_MODEL)
    return chosen or next(
        (path.parent for path in checkpoint.source.companion_files if path.name in vocabularies), None
    )


def check_tokens(
    output: Path, tokenizer: Path | None, *, texts: Sequence[str] = HARD_TEXTS, timeout: float = TIMEOUT
) -> TokensReport:
    """Compare the ids of `texts`, and of special tokens within text where the source's library knows them there.

    output: a GGUF file; tokenizer: folder or file, as for export. Raises UsageError without these, TokenizerError for
    one that cannot be read, EnvironmentProblem when a library is missing, CheckFailed when llama.cpp does not load the
    vocabulary.
    """
    if not output.is_file():
        raise UsageError("--tokens requires a GGUF output: llama.cpp reads nothing else", where=str(output))
    if tokenizer is None:
        raise UsageError("the source has no tokenizer to compare with", fix="pass it with --tokenizer")
    files, read = find(tokenizer), read_tokenizer(tokenizer)
    special = read.kind == "bpe"  # SentencePiece has no special tokens in text, and its JSON other spaces around them
    asked = [*texts, *_special_texts(read)] if special else list(texts)
    if not _by_json(files, special):
        asked = [text for text in asked if "\x00" not in text]  # sentencepiece stops at NUL
    reader, wanted, scores = ids_by_source(files, read, asked)
    got = ids_by_llama(output, asked, parse_special=special, timeout=timeout)
    different, ties = [], 0
    for text, ours, theirs in zip(asked, got, wanted, strict=True):
        if ours == theirs:
            continue
        if read.kind == "unigram" and scores and abs(_sum(scores, ours) - _sum(scores, theirs)) < TIE:
            ties += 1
        else:
            different.append(TokenDifference(text, tuple(ours), tuple(theirs)))
    return TokensReport(not different, len(asked), reader, tuple(different), ties)


def ids_by_source(
    files: TokenizerFiles, read: Tokenizer, texts: Sequence[str], *, add_special: bool = False
) -> tuple[str, list[list[int]], list[float]]:
    """What the library that owns the tokenizer reads `texts` as: its name, the ids, log probabilities of a Unigram's.

    add_special  with the tokens that the tokenizer puts around a text, such as the one that begins it
    Raises TokenizerError, and EnvironmentProblem when the library is missing.
    """
    if _by_json(files, read.kind == "bpe"):
        return _by_tokenizers(files, texts, add_special=add_special)
    if files.get(TOKENIZER_MODEL) is None:
        raise TokenizerError(
            "no library reads vocab.json and merges.txt as they are",
            where=str(files.root),
            expected="tokenizer.json or tokenizer.model",
            fix="save it with transformers once: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    reader, ids, scores = _by_sentencepiece(files, texts, len(read.tokens))
    if add_special and read.add_bos and "bos" in read.special:
        ids = [[read.special["bos"], *found] for found in ids]
    return reader, ids, scores


def _by_json(files: TokenizerFiles, bpe: bool) -> bool:
    return files.get(TOKENIZER_JSON) is not None and (bpe or files.get(TOKENIZER_MODEL) is None)


def _special_texts(read: Tokenizer) -> list[str]:
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    found = [token for token, kind in zip(read.tokens, read.types, strict=True) if kind in kinds]
    return [text for token in found[:SPECIAL] for text in around(token)]


def _sum(scores: Sequence[float], ids: Sequence[int]) -> float:
    return sum(scores[number] if 0 <= number < len(scores) else float("nan") for number in ids)


def _by_tokenizers(
    files: TokenizerFiles, texts: Sequence[str], *, add_special: bool
) -> tuple[str, list[list[int]], list[float]]:
    library = _needed("tokenizers")
    path = files.get(TOKENIZER_JSON)
    try:
        reader = library.Tokenizer.from_file(str(path))
        ids = [reader.encode(text, add_special_tokens=add_special).ids for text in texts]
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"huggingface/tokenizers cannot use it: {error}", where=str(path)) from None
    return f"tokenizers {library.__version__}, {path}", ids, []


def _by_sentencepiece(
    files: TokenizerFiles, texts: Sequence[str], size: int
) -> tuple[str, list[list[int]], list[float]]:
    library = _needed("sentencepiece")
    path = files.get(TOKENIZER_MODEL)
    try:
        reader = library.SentencePieceProcessor(model_file=str(path))
        ids = [list(reader.encode(text)) for text in texts]
        scores = [float(reader.get_score(number)) for number in range(min(size, reader.get_piece_size()))]
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"sentencepiece cannot use it: {error}", where=str(path)) from None
    return f"sentencepiece {library.__version__}, {path}", ids, scores


def ids_by_llama(
    model: Path, texts: Sequence[str], *, add_special: bool = False, parse_special: bool, timeout: float = TIMEOUT
) -> list[list[int]]:
    """What llama.cpp reads `texts` as, by the vocabulary in a GGUF.

    Raises TokenizerError for a file without one, EnvironmentProblem, CheckFailed.
    """
    if "tokenizer.ggml.tokens" not in read_header(model).metadata:  # llama.cpp aborts
        raise TokenizerError(
            "this GGUF file has no tokenizer",
            where=str(model),
            fix="export it with --tokenizer, or name one for --logits",
        )
    request = {"model": str(model), "texts": list(texts), "add_special": add_special, "parse_special": parse_special}
    ids: list[list[int]] = json.loads(ask(engine("llama.cpp"), request, timeout=timeout))
    return ids


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EnvironmentProblem(f"the Python package {name} is needed and not installed", fix=EXTRA) from None
