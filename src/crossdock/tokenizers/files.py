"""Which files make up a tokenizer, and which of them travel with a model byte for byte.

Looks at names only, never at contents, except for `read_bytes` and `read_json`, which read whole files under
a size limit. File names from huggingface/transformers `tokenization_utils_base.py` (5.23) and openai/gpt-2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.errors import EnvironmentProblem, FormatError, NotACheckpointError, TokenizerError
from crossdock.io.files import head_of, read_exact, reading, size_of
from crossdock.io.json import TOKENIZER, json_object
from crossdock.io.links import check_links

# The largest real tokenizer.json is 33 MB (Gemma 3), the largest tokenizer.model 5 MB.
MAX_FILE_SIZE = 48 << 20
MAX_MODEL_SIZE = 32 << 20

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
TOKENIZER_MODEL = "tokenizer.model"
VOCAB_JSON = "vocab.json"
MERGES_TXT = "merges.txt"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES_FOLDER = "additional_chat_templates"
OLD_TEMPLATE = "chat_template.json"  # of processors, {"chat_template": TEXT or {NAME: TEXT}}
TEMPLATE_FOLDERS = (CHAT_TEMPLATES_FOLDER, "chat_templates")
TIKTOKEN = "tokenizer.tiktoken"  # a rank file, whatever its own name

TRAVELLING = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_MODEL,
    VOCAB_JSON,
    MERGES_TXT,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    OLD_TEMPLATE,
)
# Read for the ids of special tokens, but they belong to the model, not to the tokenizer.
MODEL_CONFIGS = ("generation_config.json", "config.json")
# Other names under which a SentencePiece model is found in the wild.
SENTENCEPIECE_NAMES = (TOKENIZER_MODEL, "spiece.model", "sentencepiece.bpe.model")
# (end of the vocabulary's name, end of the merges' name): GPT-2's pair under other prefixes, as Megatron names it
# (gpt2-vocab.json, gpt2-merges.txt), and under its first names.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files of one tokenizer.

    root           the folder they were found in
    companion_files        (name in a Hugging Face folder, path) of every file that goes along with a model, untouched
    model_configs  generation_config.json and config.json where present, which may name further end tokens
    """

    root: Path
    companion_files: tuple[tuple[str, Path], ...]
    model_configs: tuple[Path, ...] = ()

    def get(self, name: str) -> Path | None:
        """The path of the file that travels as `name`, None when there is none."""
        return dict(self.companion_files).get(name)


def find(path: Path) -> TokenizerFiles:
    """The tokenizer at `path`: a folder, or one of its files.

    A folder gives all it has under the usual names (tokenizer.json, tokenizer.model, ...); without a vocabulary among
    them, the one that it has under another name: gpt2-vocab.json with gpt2-merges.txt, NAME.model, NAME.tiktoken. A
    file gives itself and what lies beside it under its usual name. Looks at names, and at the first bytes of what may
    be a rank file.

    Raises TokenizerError when there is no vocabulary, or when several are there under other names.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    found = {name: root / name for name in TRAVELLING if (root / name).is_file()}
    if path.is_dir():
        for name in SENTENCEPIECE_NAMES:
            if TOKENIZER_MODEL not in found and (root / name).is_file():
                found[TOKENIZER_MODEL] = root / name
        if not _has_vocabulary(found):
            found |= _under_other_names(root)
    elif path.is_file():
        # The file that was named is the vocabulary: others beside it must not win over it.
        for other in (TOKENIZER_JSON, TOKENIZER_MODEL, VOCAB_JSON, MERGES_TXT):
            found.pop(other, None)
        found |= _named(path)
    else:
        raise TokenizerError("tokenizer path does not exist", where=str(path), fix=_hub(path))
    if TOKENIZER_MODEL in found and is_rank_file(found[TOKENIZER_MODEL]):
        found[TIKTOKEN] = found.pop(TOKENIZER_MODEL)
    _demand_vocabulary(found, path)
    for folder in TEMPLATE_FOLDERS:
        for template in sorted((root / folder).glob("*.jinja")):
            name = CHAT_TEMPLATE if template.stem == "default" else f"{CHAT_TEMPLATES_FOLDER}/{template.name}"
            found.setdefault(name, template)
    check_links(found.values(), root)
    configs = tuple(root / name for name in MODEL_CONFIGS if (root / name).is_file())
    return TokenizerFiles(root, tuple(found.items()), configs)


def is_rank_file(path: Path) -> bool:
    """Whether the file begins as a list of tiktoken's ranks does: a line of base64 and a number, or a JSON list."""
    return re.match(rb"\A(\s*\[|[A-Za-z0-9+/]+={0,2} \d+\r?\n)", head_of(path, 256)) is not None


def read_bytes(path: Path, limit: int = MAX_FILE_SIZE) -> bytes:
    """The whole file. Raises FormatError when it is larger than `limit` bytes or cannot be read."""
    try:
        with reading(path) as fd:
            size = size_of(fd)
            if size > limit:
                raise FormatError(
                    "too large for a tokenizer file",
                    where=str(path),
                    expected=f"at most {limit} bytes",
                    got=str(size),
                )
            return read_exact(fd, 0, size, str(path))
    except (NotACheckpointError, EnvironmentProblem) as error:
        raise FormatError(f"cannot be read: {error.problems[0].what}", where=str(path)) from None


def read_text(path: Path) -> str:
    """The whole file as UTF-8 (a byte order mark is dropped). Raises FormatError."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: {error.reason} at byte {error.start}", where=str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises FormatError for anything that is not one JSON object in UTF-8, for a key given two values in one
    object (JSON readers silently keep the last), and beyond the limits of `TOKENIZER`. NaN and Infinity are
    read, since Python writes them into config.json (Mamba's time_step_limit).
    """
    return json_object(read_bytes(path), TOKENIZER, str(path))


def _named(path: Path) -> dict[str, Path]:
    """The vocabulary in a file that was named, and its other half."""
    for vocabulary, merges in PAIRS:
        if path.name.endswith(vocabulary):
            if is_rank_file(path):
                return {TIKTOKEN: path}
            other = path.with_name(path.name.removesuffix(vocabulary) + merges)
            return {VOCAB_JSON: path} | ({MERGES_TXT: other} if other.is_file() else {})
    if path.suffix == ".json":
        return {TOKENIZER_JSON: path}
    if path.suffix == ".tiktoken":
        return {TIKTOKEN: path}
    if {".model", ".spm"} & set(path.suffixes):  # also tokenizer.model.v3
        return {TOKENIZER_MODEL: path}
    raise TokenizerError(
        "not the name of a tokenizer file",
        where=str(path),
        expected="tokenizer.json, tokenizer.model, *vocab.json (with *merges.txt beside it), *.tiktoken, a folder "
        "or a GGUF file",
    )


def _under_other_names(root: Path) -> dict[str, Path]:
    """The one vocabulary of a folder that has none under the usual names; {} when there is none."""
    ends = (*(vocabulary for vocabulary, _ in PAIRS), ".tiktoken", ".model", ".spm")
    possible = sorted(path for path in root.iterdir() if path.name.endswith(ends) and path.is_file())
    found = [halves for path in possible if (halves := _named(path)).keys() != {VOCAB_JSON}]
    if len(found) > 1:
        raise TokenizerError(
            "several vocabularies are in this folder",
            where=str(root),
            got=", ".join(sorted(path.name for halves in found for path in halves.values())[:8]),
            fix="--tokenizer with the file that is the model's",
        )
    return found[0] if found else {}


def _has_vocabulary(found: Mapping[str, Path]) -> bool:
    return any(name in found for name in (TOKENIZER_JSON, TOKENIZER_MODEL, TIKTOKEN)) or {
        VOCAB_JSON, MERGES_TXT,
    } <= found.keys()  # fmt: skip


def _demand_vocabulary(found: Mapping[str, Path], path: Path) -> None:
    if _has_vocabulary(found):
        return
    missing = f"{MERGES_TXT} beside it" if VOCAB_JSON in found else "a vocabulary"
    raise TokenizerError(
        f"no tokenizer found: {missing} is missing",
        where=str(path),
        expected="tokenizer.json, or tokenizer.model, or vocab.json with merges.txt, or NAME.tiktoken",
        got=", ".join(found) or "none of them",
        fix="--tokenizer PATH names the folder or file",
    )


def _hub(path: Path) -> str:
    """What to do about the id of a repository on the Hub, which is not a path."""
    text = str(path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        return ""
    return f"if it is the name of a model on the Hub: hf download {text} --include '*token*' --local-dir FOLDER"
