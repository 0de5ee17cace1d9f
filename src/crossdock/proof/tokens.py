"""Does llama.cpp read text from a GGUF as the source's own tokenizer does? Ids against ids, on texts made to differ.

The engine is the wheel xllamacpp in a process of its own; the source's tokenizer runs in the library that owns its
kind: huggingface/tokenizers for tokenizer.json, google/sentencepiece for tokenizer.model. Nothing is re-implemented.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock import tokenizers
from crossdock.errors import CheckFailed, EnvironmentProblem, TokenizerError
from crossdock.proof import llama_vocabulary
from crossdock.tokenizers.files import TOKENIZER_JSON, TOKENIZER_MODEL, TokenizerFiles
from crossdock.tokenizers.hard_texts import HARD_TEXTS, around
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType

EXTRA = 'pip install "crossdock[tokens]"'
SPECIAL = 16  # special tokens that are tried within text, at most
TIE = 1e-4  # log probabilities closer than this are equal: sentencepiece adds in float32, llama.cpp in float64


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """A text that the two read differently."""

    text: str
    engine: tuple[int, ...]
    source: tuple[int, ...]


@dataclass(frozen=True)
class TokensReport:
    """The outcome over `texts` texts. reader: the library and file that gave the source's ids.

    ties  texts that a Unigram model can cut in two equally likely ways, and the two libraries took one each
    """

    ok: bool
    texts: int
    reader: str
    different: tuple[TokenDifference, ...]
    ties: int = 0


def check_tokens(
    output: Path, tokenizer: Path, *, texts: Sequence[str] = HARD_TEXTS, timeout: float = 300
) -> TokensReport:
    """Compare the ids of `texts`, and of special tokens within text where the source's library knows them there.

    output: a GGUF file; tokenizer: folder or file, as for export. Raises TokenizerError for a tokenizer that cannot be
    read, EnvironmentProblem when a library is missing, CheckFailed when llama.cpp does not load the vocabulary.
    """
    files, read = tokenizers.find(tokenizer), tokenizers.read(tokenizer)
    special = read.kind == "bpe"  # SentencePiece has no special tokens in text, and its JSON other spaces around them
    asked = [*texts, *_special_texts(read)] if special else list(texts)
    if files.get(TOKENIZER_JSON) is not None and (special or files.get(TOKENIZER_MODEL) is None):
        reader, wanted, scores = _by_tokenizers(files, asked)
    elif files.get(TOKENIZER_MODEL) is not None:
        asked = [text for text in asked if "\x00" not in text]  # sentencepiece stops at NUL
        reader, wanted, scores = _by_sentencepiece(files, asked, len(read.tokens))
    else:
        raise TokenizerError(
            "no library reads vocab.json and merges.txt as they are",
            where=str(files.root),
            expected="tokenizer.json or tokenizer.model",
            fix="save it with transformers once: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    got = _by_llama(output, asked, parse_special=special, timeout=timeout)
    different, ties = [], 0
    for text, ours, theirs in zip(asked, got, wanted, strict=True):
        if ours == theirs:
            continue
        if read.kind == "unigram" and scores and abs(_sum(scores, ours) - _sum(scores, theirs)) < TIE:
            ties += 1
        else:
            different.append(TokenDifference(text, tuple(ours), tuple(theirs)))
    return TokensReport(not different, len(asked), reader, tuple(different), ties)


def _special_texts(read: Tokenizer) -> list[str]:
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    found = [token for token, kind in zip(read.tokens, read.types, strict=True) if kind in kinds]
    return [text for token in found[:SPECIAL] for text in around(token)]


def _sum(scores: Sequence[float], ids: Sequence[int]) -> float:
    return sum(scores[number] if 0 <= number < len(scores) else float("nan") for number in ids)


def _by_tokenizers(files: TokenizerFiles, texts: Sequence[str]) -> tuple[str, list[list[int]], list[float]]:
    library = _needed("tokenizers")
    path = files.get(TOKENIZER_JSON)
    try:
        reader = library.Tokenizer.from_file(str(path))
        ids = [reader.encode(text, add_special_tokens=False).ids for text in texts]
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


def _by_llama(model: Path, texts: Sequence[str], *, parse_special: bool, timeout: float) -> list[list[int]]:
    if importlib.util.find_spec("xllamacpp") is None:
        raise EnvironmentProblem("llama.cpp is needed and not installed: the wheel xllamacpp", fix=EXTRA)
    request = {"model": str(model), "texts": list(texts), "parse_special": parse_special}
    # -P: the script's own folder must not hide a module of the standard library
    command = [sys.executable, "-P", llama_vocabulary.__file__]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, errors="replace", timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"llama.cpp took more than {timeout:.0f} s to read the texts", where=str(model)) from None
    if done.returncode == llama_vocabulary.OTHER_VERSION:
        raise EnvironmentProblem("the installed xllamacpp is not the version that crossdock knows", fix=EXTRA)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()][-6:]
        raise CheckFailed(
            f"llama.cpp does not load the vocabulary (exit code {done.returncode})",
            where=str(model),
            cause="; ".join(lines)[-600:],
        )
    ids: list[list[int]] = json.loads(done.stdout)
    return ids


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EnvironmentProblem(f"the Python package {name} is needed and not installed", fix=EXTRA) from None
