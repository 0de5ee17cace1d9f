"""Which files make up a tokenizer, and which of them travel with a model byte for byte.

Looks at names only, never at contents, except for `read_bytes` and `read_json`, which read whole files under
a size limit. File names from huggingface/transformers `tokenization_utils_base.py` (5.23) and openai/gpt-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.errors import EnvironmentProblem, FormatError, NotACheckpointError, TokenizerError
from crossdock.io.files import read_exact, reading, size_of
from crossdock.io.json import TOKENIZER, parse_json
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

TRAVELLING = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_MODEL,
    VOCAB_JSON,
    MERGES_TXT,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
)
# Read for the ids of special tokens, but they belong to the model, not to the tokenizer.
MODEL_CONFIGS = ("generation_config.json", "config.json")
# Other names under which a SentencePiece model is found in the wild.
SENTENCEPIECE_NAMES = (TOKENIZER_MODEL, "spiece.model", "sentencepiece.bpe.model")


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
    """The tokenizer at `path`: a folder, or one of its files (tokenizer.json, tokenizer.model, *vocab.json).

    A folder gives all it has. A file gives itself and what lies beside it under its usual name;
    `gpt2-vocab.json` finds `gpt2-merges.txt` and travels as vocab.json. Raises TokenizerError when there is
    no vocabulary, InputError for a link that leads out of the folder.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    found = {name: root / name for name in TRAVELLING if (root / name).is_file()}
    if path.is_dir():
        for name in SENTENCEPIECE_NAMES:
            if TOKENIZER_MODEL not in found and (root / name).is_file():
                found[TOKENIZER_MODEL] = root / name
    elif path.is_file():
        name = _travelling_name(path)
        # The file that was named is the vocabulary: others beside it must not win over it.
        for other in (TOKENIZER_JSON, TOKENIZER_MODEL, VOCAB_JSON, MERGES_TXT):
            found.pop(other, None)
        found[name] = path
        if name == VOCAB_JSON:
            merges = path.with_name(path.name.removesuffix(VOCAB_JSON) + MERGES_TXT)
            if merges.is_file():
                found[MERGES_TXT] = merges
    else:
        raise TokenizerError("no tokenizer here: no such file or folder", where=str(path))
    _demand_vocabulary(found, path)
    for template in sorted((root / CHAT_TEMPLATES_FOLDER).glob("*.jinja")):
        found[f"{CHAT_TEMPLATES_FOLDER}/{template.name}"] = template
    check_links(found.values(), root)
    configs = tuple(root / name for name in MODEL_CONFIGS if (root / name).is_file())
    return TokenizerFiles(root, tuple(found.items()), configs)


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
    try:
        value = parse_json(read_bytes(path), TOKENIZER)
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", where=str(path), cause="truncated or edited file") from None
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", where=str(path), got=type(value).__name__)
    return value


def _travelling_name(path: Path) -> str:
    if path.name.endswith(VOCAB_JSON):
        return VOCAB_JSON
    if path.suffix == ".json":
        return TOKENIZER_JSON
    if {".model", ".spm"} & set(path.suffixes):  # also tokenizer.model.v3
        return TOKENIZER_MODEL
    raise TokenizerError(
        "not the name of a tokenizer file",
        where=str(path),
        expected="tokenizer.json, tokenizer.model, *vocab.json (with *merges.txt beside it), a folder, or a GGUF file",
    )


def _demand_vocabulary(found: dict[str, Path], path: Path) -> None:
    if TOKENIZER_JSON in found or TOKENIZER_MODEL in found:
        return
    if VOCAB_JSON in found and MERGES_TXT in found:
        return
    missing = f"{MERGES_TXT} beside it" if VOCAB_JSON in found else "a vocabulary"
    raise TokenizerError(
        f"no tokenizer here: {missing} is missing",
        where=str(path),
        expected="tokenizer.json, or tokenizer.model, or vocab.json with merges.txt",
        got=", ".join(found) or "none of them",
        fix="--tokenizer PATH names the folder or file",
    )
