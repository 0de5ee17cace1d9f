"""Tokenizers that travel with a model: which files they are, what they say, and their GGUF form.

Files are copied byte for byte by whoever writes a model; nothing here rewrites them, and nothing encodes
text.
"""

from crossdock.tokenizers.files import TokenizerFiles, find
from crossdock.tokenizers.gguf_metadata import gguf_differences, gguf_metadata, gguf_metadata_none, too_few
from crossdock.tokenizers.reading import read
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType

__all__ = [
    "TokenType",
    "Tokenizer",
    "TokenizerFiles",
    "find",
    "gguf_differences",
    "gguf_metadata",
    "gguf_metadata_none",
    "read",
    "too_few",
]
