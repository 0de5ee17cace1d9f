"""The child process that asks llama.cpp for token ids: a request in JSON on standard input, the ids on standard output.

A process of its own, since ggml aborts on bad input; a script without crossdock, so that it starts at once. It calls
the C API in the shared library of the wheel xllamacpp 2026.10.11549 (llama.cpp b11549) and loads no tensors.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

VOCAB_ONLY = 72  # byte offset in llama_model_params; check_tensors (false) and use_extra_bufts (true) follow it
OTHER_VERSION = 3  # exit code for a library whose structs are laid out otherwise


class Blob(ctypes.Structure):
    """A struct that is passed by value and larger than any of llama.cpp's."""

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


def main() -> None:
    """Read {"model", "texts", "parse_special"}; print a list of ids per text. Exit code 1 with the log if it fails."""
    request = json.load(sys.stdin)
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise SystemExit("xllamacpp is not installed")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    pointer, int32, flag, text_type = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(library, name)
        found.restype, found.argtypes = result, arguments
        return found

    log: list[str] = []
    log_type = ctypes.CFUNCTYPE(None, ctypes.c_int, text_type, pointer)
    keep = log_type(lambda level, text, _: log.append(text.decode("utf-8", "replace")))
    function("llama_log_set", None, log_type, pointer)(keep, None)
    function("llama_backend_init", None)()
    parameters = function("llama_model_default_params", Blob)()
    if list(parameters.bytes[VOCAB_ONLY : VOCAB_ONLY + 5]) != [0, 0, 1, 0, 0]:
        raise SystemExit(OTHER_VERSION)
    parameters.bytes[VOCAB_ONLY] = 1
    model = function("llama_model_load_from_file", pointer, text_type, Blob)(request["model"].encode(), parameters)
    if not model:
        raise SystemExit("".join(log)[-2000:])
    vocabulary = function("llama_model_get_vocab", pointer, pointer)(model)
    tokenize = function(
        "llama_tokenize", int32, pointer, text_type, int32, ctypes.POINTER(int32), int32, flag, flag
    )  # fmt: skip
    ids = []
    for text in request["texts"]:
        raw = text.encode()
        room = (int32 * (len(raw) + 16))()
        count = tokenize(vocabulary, raw, len(raw), room, len(room), False, request["parse_special"])
        if count < 0:
            raise SystemExit(f"llama_tokenize returned {count} for {text!r}")
        ids.append(list(room[:count]))
    json.dump(ids, sys.stdout)


if __name__ == "__main__":
    main()
