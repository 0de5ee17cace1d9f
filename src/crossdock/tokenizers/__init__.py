"""Tokenizers that travel with a model: which files they are, what they say, and their GGUF form.

Files are copied byte for byte by whoever writes a model; nothing here rewrites them, and nothing encodes
text. Only a vocabulary that comes in GGUF keys gets files made for it.
"""

from crossdock.tokenizers.files import TokenizerFiles, find
from crossdock.tokenizers.from_gguf import from_gguf
from crossdock.tokenizers.gguf_metadata import gguf_differences, gguf_metadata, too_few
from crossdock.tokenizers.hf_files import hf_differences, hf_files
from crossdock.tokenizers.reading import read
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType

__all__ = [
    "TokenType",
    "Tokenizer",
    "TokenizerFiles",
    "find",
    "from_gguf",
    "gguf_differences",
    "gguf_metadata",
    "hf_differences",
    "hf_files",
    "read",
    "too_few",
]
