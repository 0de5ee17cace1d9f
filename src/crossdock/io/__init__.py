"""Bytes of files: read at an offset, written whole or not at all; JSON objects read strictly."""
