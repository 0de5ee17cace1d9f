"""What a Hugging Face folder gets of a tokenizer: the files that are copied, and those that transformers lacks and that
are made.

Files are copied byte for byte; a tokenizer.json is made where there is none that transformers could load: from
vocab.json with merges.txt, SentencePiece's tokenizer.model, and rank files of tiktoken. Writes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from crossdock.tokenizers.files import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATES_FOLDER,
    OLD_TEMPLATE,
    TIKTOKEN,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
    TokenizerFiles,
    read_json,
)
from crossdock.tokenizers.hf_files import hf_differences, hf_files
from crossdock.tokenizers.tokenizer import Tokenizer


def hf_folder(files: TokenizerFiles, tokenizer: Tokenizer) -> tuple[dict[str, Path], dict[str, bytes], tuple[str, ...]]:
    """Name in the folder -> file to copy; name -> contents that are made; what is assumed or will differ, as sentences.

    tokenizer: what `read` makes of `files`. Raises FormatError, TokenizerError.
    """
    copied, own = dict(files.companion_files), TOKENIZER_JSON in dict(files.companion_files)
    made: dict[str, bytes] = {}
    if (ranks := copied.pop(TIKTOKEN, None)) is not None and own:
        copied[ranks.name] = ranks
    if copied.pop(OLD_TEMPLATE, None) is not None:
        made |= _templates(tokenizer, copied)
    if own:
        return copied, made, tokenizer.assumed
    configuration = {} if (path := files.get(TOKENIZER_CONFIG)) is None else read_json(path)
    by_class = isinstance(configuration.get("tokenizer_class"), str)
    if by_class and VOCAB_JSON in copied:  # its class reads the pair
        return copied, made, ()
    ours = hf_files(tokenizer, model=False)
    made = {**ours, **made}
    if by_class:
        del made[TOKENIZER_CONFIG]
    elif configuration:
        del copied[TOKENIZER_CONFIG]
        own_class = {"tokenizer_class": json.loads(ours[TOKENIZER_CONFIG])["tokenizer_class"]}
        merged = {**json.loads(ours[TOKENIZER_CONFIG]), **configuration, **own_class}
        made[TOKENIZER_CONFIG] = json.dumps(merged, ensure_ascii=False, indent=1).encode() + b"\n"
    copied = {name: path for name, path in copied.items() if name not in made}
    return copied, made, (*tokenizer.assumed, *hf_differences(tokenizer))


def _templates(tokenizer: Tokenizer, copied: dict[str, Path]) -> dict[str, bytes]:
    """The templates of a chat_template.json as the files that transformers 5 reads, beside those that are there."""
    texts = {
        CHAT_TEMPLATE if name == "default" else f"{CHAT_TEMPLATES_FOLDER}/{name}.jinja": text
        for name, text in tokenizer.chat_templates.items()
    }
    return {name: text.encode() for name, text in texts.items() if name not in copied}
