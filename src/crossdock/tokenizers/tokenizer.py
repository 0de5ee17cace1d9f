"""A tokenizer as crossdock holds it: the vocabulary and all that an inference engine must know to use it.

Pure data; it never encodes text. Token types are those of GGUF (`gguf.TokenType` of gguf-py 0.19, the same
numbers as `SentencePiece.Type` of google/sentencepiece `sentencepiece_model.proto`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

from crossdock.errors import Problem

Kind = Literal["bpe", "spm", "unigram"]

# No vocabulary is near this; it bounds what a lying id can make us allocate.
MAX_TOKENS = 1 << 22


class TokenType(IntEnum):
    """How an engine treats a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """One vocabulary with its rules.

    kind                      "bpe" (byte-level, by merges), "spm" (SentencePiece BPE, by scores), "unigram"
    tokens                    text of each id as the files spell it ("Ġthe", "▁the", "<0x0A>"); an id that the
                              files leave out is "[PAD{id}]" of type UNUSED
    types                     one TokenType per id
    scores                    one per id, () for "bpe"
    merges                    "left right" in rank order, () for the others
    splits                    the pre-tokenizer as stages, see `pre_tokenizers.stages`; () for the others
    ignore_merges             "bpe": a word that is a token is taken whole
    special                   "bos", "eos", "unk", "sep", "pad", "mask", "cls" → id, where known
    end_tokens                every id that ends a generation, the main one first
    begin, end                the tokens that a tokenizer.json puts before and behind a text, where it puts any:
                              they may be others than the "bos" and "eos" that the configuration names
    add_bos, add_eos          whether encoding adds a token before and behind a text, None when no file says so
    add_space_prefix          SentencePiece's add_dummy_prefix
    remove_extra_whitespaces  SentencePiece's flag of that name
    charsmap                  SentencePiece's precompiled normalization map, b"" when there is none
    chat_templates            name → Jinja text; the main one is "default"
    symbols                   SentencePiece's user-defined pieces: matched within the text, spaces written as ▁
    assumed                   what no file says and was taken all the same, as sentences
    differences               what an engine that has only these fields will do otherwise than the original
    sources                   the files that were read
    """

    kind: Kind
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    ignore_merges: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    end_tokens: tuple[int, ...] = ()
    begin: int | None = None
    end: int | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    symbols: tuple[int, ...] = ()
    assumed: tuple[str, ...] = ()
    differences: tuple[Problem, ...] = ()
    sources: tuple[Path, ...] = ()

    def begins_with(self) -> int | None:
        """The token that encoding puts before a text, None where it puts none.

        SentencePiece BPE without a file that says so has its begin token there, as in transformers' LlamaTokenizer
        and in llama.cpp.
        """
        adds = self.kind == "spm" if self.add_bos is None else self.add_bos
        return (self.special.get("bos") if self.begin is None else self.begin) if adds else None

    def ends_with(self) -> int | None:
        """The token that encoding puts behind a text, None where it puts none."""
        return (self.special.get("eos") if self.end is None else self.end) if self.add_eos else None
