"""Texts that tell tokenizers apart, and tokenizers trained on the small text that ships with the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers as hf
from crossdock.tokenizers.hard_texts import HARD_TEXTS, around

CORPUS = Path(__file__).parents[1] / "data" / "tokenizers" / "corpus.txt"


def hard_texts(special: tuple[str, ...] = ()) -> list[str]:
    """The hard texts, the lines of the corpus, and special tokens within text."""
    within = [text for s in special for text in around(s)]
    return [*HARD_TEXTS, *CORPUS.read_text(encoding="utf-8").splitlines(), *within]


def component(stage: str) -> dict[str, Any]:
    """A stage of `crossdock.tokenizers.pre_tokenizers` as the JSON of huggingface/tokenizers."""
    kind, _, rest = stage.partition(" ")
    if kind == "punctuation":
        return {"type": "Punctuation", "behavior": rest.capitalize()}
    return {"type": "Split", "pattern": {"Regex": rest}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool = False) -> dict[str, Any]:
    """The ByteLevel component as byte-level tokenizers have it."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def train_bpe(
    stages: list[dict[str, Any]], *, size: int = 700, special: tuple[str, ...] = ("<|endoftext|>",)
) -> dict[str, Any]:
    """The JSON of a byte-level BPE trained on the corpus, split by `stages`; special tokens come last."""
    trained = hf.Tokenizer(hf.models.BPE())
    blank = json.loads(trained.to_str())
    blank["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": stages}
    blank["decoder"] = byte_level(True)
    trained = hf.Tokenizer.from_str(json.dumps(blank))
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train([str(CORPUS)], trainer)
    trained.add_special_tokens(list(special))
    result: dict[str, Any] = json.loads(trained.to_str())
    return result


def save(folder: Path, **files: Any) -> Path:
    """Write files given as NAME_ext=content (`tokenizer_json={...}`); objects become JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, extension = re.fullmatch(r"(.+)_([a-z]+)", name).groups()  # type: ignore[union-attr]
        path = folder / f"{stem}.{extension}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
    return folder
