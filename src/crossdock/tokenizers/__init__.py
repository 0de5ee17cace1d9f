"""Tokenizers that travel with a model: which files they are, what they say, and their GGUF form.

Files are copied byte for byte by whoever writes a model; nothing here rewrites them, and nothing encodes text. Only a
vocabulary that transformers could not load (in GGUF keys, or without a tokenizer.json) gets files made for it.
"""
