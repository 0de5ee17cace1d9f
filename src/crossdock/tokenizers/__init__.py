"""Tokenizers that travel with a model: which files they are, what they say, and their GGUF form.

Files are copied byte for byte by whoever writes a model; nothing here rewrites them, and nothing encodes text. Only a
vocabulary that transformers could not load (in GGUF keys, or without a tokenizer.json) gets files made for it.
"""

from crossdock.tokenizers.files import TokenizerFiles, find
from crossdock.tokenizers.folder import hf_folder
from crossdock.tokenizers.from_gguf import from_gguf
from crossdock.tokenizers.gguf_metadata import ends_of, gguf_differences, gguf_metadata, no_end, too_few
from crossdock.tokenizers.hf_files import hf_differences, hf_files
from crossdock.tokenizers.reading import read
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType

__all__ = [
    "TokenType",
    "Tokenizer",
    "TokenizerFiles",
    "ends_of",
    "find",
    "from_gguf",
    "gguf_differences",
    "gguf_metadata",
    "hf_differences",
    "hf_files",
    "hf_folder",
    "no_end",
    "read",
    "too_few",
]
