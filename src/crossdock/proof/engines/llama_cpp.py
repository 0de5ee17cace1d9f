"""The child process that asks llama.cpp, for token ids ("texts" in the request) or logits ("windows").

A process of its own, since ggml aborts on bad input; a script without crossdock, so that it starts at once. It calls
the C API (llama.h) in the shared library of the wheel xllamacpp 2026.10.11549 (llama.cpp b11549). Parameter structs
travel by value as opaque blobs; only the offsets below are written, after their defaults were found there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

OTHER_VERSION = 3  # exit code for a library whose structs are laid out otherwise

VOCAB_ONLY = 72  # byte offset in llama_model_params; check_tensors (false) and use_extra_bufts (true) follow it
# name -> (byte offset in llama_context_params, default there); the defaults F16 cache and automatic flash attention
# are off by 1e-2 and would hide faults
N_CTX, N_BATCH, N_UBATCH = (0, 512), (4, 2048), (8, 512)
N_THREADS, N_THREADS_BATCH = (28, None), (32, None)
FLASH_ATTENTION, TYPE_K, TYPE_V = (52, -1), (104, 1), (108, 1)
KNOWN = (N_CTX, N_BATCH, N_UBATCH, FLASH_ATTENTION, TYPE_K, TYPE_V)


class Blob(ctypes.Structure):
    """A struct that is passed by value and larger than any of llama.cpp's."""

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


class Batch(ctypes.Structure):
    """The fields of llama.cpp's `llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class Llama:
    """The shared library; `call` binds and calls a function of it. What it logs is kept for `fail`."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("xllamacpp")
        if spec is None or spec.origin is None:
            raise SystemExit("xllamacpp is not installed")
        self._library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
        self._log: list[str] = []
        log_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._keep = log_type(lambda level, text, _: self._log.append(text.decode("utf-8", "replace")))
        self.call("llama_log_set", None, (log_type, ctypes.c_void_p), self._keep, None)
        self.call("llama_backend_init", None, ())

    def call(self, name: str, result: Any, types: tuple[Any, ...], *arguments: Any) -> Any:
        """`name`(arguments) with the C types given."""
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, types
        return function(*arguments)

    def fail(self, what: str) -> SystemExit:
        """`what` behind the end of the log."""
        return SystemExit("".join(self._log)[-2000:] + "\n" + what)

    def open(self, path: str, *, vocab_only: bool) -> int:
        """Load the model at `path`."""
        parameters = self.call("llama_model_default_params", Blob, ())
        if list(parameters.bytes[VOCAB_ONLY : VOCAB_ONLY + 5]) != [0, 0, 1, 0, 0]:
            raise SystemExit(OTHER_VERSION)
        parameters.bytes[VOCAB_ONLY] = vocab_only
        types = (ctypes.c_char_p, Blob)
        model = self.call("llama_model_load_from_file", ctypes.c_void_p, types, path.encode(), parameters)
        if not model:
            raise self.fail("the model does not load")
        return int(model)

    def vocabulary(self, model: int) -> int:
        """Return the vocabulary of the model."""
        return int(self.call("llama_model_get_vocab", ctypes.c_void_p, (ctypes.c_void_p,), model))


def main() -> None:
    """Do what the request on standard input asks."""
    request = json.load(sys.stdin)
    llama = Llama()
    if "texts" in request:
        model = llama.open(request["model"], vocab_only=True)
        special = (request.get("add_special", False), request["parse_special"])
        json.dump([_ids(llama, model, text, *special) for text in request["texts"]], sys.stdout)
        return
    model = llama.open(request["model"], vocab_only=False)
    for number, window in enumerate(request["windows"]):
        _logits(llama, model, window, lambda rows, to=f"{request['out']}/{number}.npy": np.save(to, rows))


def _ids(llama: Llama, model: int, text: str, add_special: bool, parse_special: bool) -> list[int]:
    raw, flag, int32 = text.encode(), ctypes.c_bool, ctypes.c_int32
    room = (int32 * (len(raw) + 16))()
    types = (ctypes.c_void_p, ctypes.c_char_p, int32, ctypes.POINTER(int32), int32, flag, flag)
    vocabulary = llama.vocabulary(model)
    call_arguments = (vocabulary, raw, len(raw), room, len(room), add_special, parse_special)
    count = llama.call("llama_tokenize", int32, types, *call_arguments)
    if count < 0:
        raise SystemExit(f"llama_tokenize returned {count} for {text!r}")
    return list(room[:count])


def _logits(llama: Llama, model: int, tokens: list[int], take: Any) -> None:
    """Decode one window in a context of its own; `take` gets a view of its logits [tokens, vocab_size]."""
    pointer, int32, n = ctypes.c_void_p, ctypes.c_int32, len(tokens)
    context = llama.call("llama_init_from_model", pointer, (pointer, Blob), model, _parameters(llama, n))
    if not context:
        raise llama.fail("llama_init_from_model gave no context")
    batch = llama.call("llama_batch_init", Batch, (int32, int32, int32), n, 0, 1)
    batch.n_tokens = n
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    code = llama.call("llama_decode", int32, (pointer, Batch), context, batch)
    if code:
        raise llama.fail(f"llama_decode returned {code}")
    vocab_size = llama.call("llama_vocab_n_tokens", int32, (pointer,), llama.vocabulary(model))
    rows = llama.call("llama_get_logits", ctypes.POINTER(ctypes.c_float), (pointer,), context)
    take(np.ctypeslib.as_array(rows, (n, vocab_size)))
    llama.call("llama_batch_free", None, (Batch,), batch)
    llama.call("llama_free", None, (pointer,), context)


def _parameters(llama: Llama, n: int) -> Blob:
    """Context parameters for n tokens at once: float32 cache, no flash attention."""
    parameters: Blob = llama.call("llama_context_default_params", Blob, ())
    fields = {at: ctypes.c_int32.from_buffer(parameters, at) for at, _ in (*KNOWN, N_THREADS, N_THREADS_BATCH)}
    if any(fields[at].value != default for at, default in KNOWN):
        raise SystemExit(OTHER_VERSION)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores)
    sizes = {N_CTX: max(64, n), N_BATCH: n, N_UBATCH: n, N_THREADS: threads, N_THREADS_BATCH: threads}
    for (at, _), value in {**sizes, FLASH_ATTENTION: 0, TYPE_K: 0, TYPE_V: 0}.items():
        fields[at].value = value
    return parameters


if __name__ == "__main__":
    main()
