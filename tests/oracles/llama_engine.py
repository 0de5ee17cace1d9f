"""Logits and token ids from llama.cpp itself: its C API in the shared library of the xllamacpp wheel.

Pinned to xllamacpp 2026.10.11549 (llama.cpp b11549): parameter structs travel as opaque by-value blobs and
only the offsets below are written. Flash attention is off and the KV cache is float32: the defaults differ
by 1e-2 and hide faults. ggml aborts its process on bad input, so `llama_logits` and `llama_tokens` each
start one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Tokens = NDArray[np.integer[Any]]

# byte offsets into llama_context_params and llama_model_params of b11549
CONTEXT_OFFSETS = {
    "n_ctx": 0,
    "n_batch": 4,
    "n_ubatch": 8,
    "n_threads": 28,
    "n_threads_batch": 32,
    "flash_attn_type": 52,
    "type_k": 104,
    "type_v": 108,
}


def llama_logits(model: Path, tokens: Tokens, *, adapter: Path | None = None, timeout: float = 120) -> Logits:
    """float32 logits [batch, n, vocabulary] for `tokens` [batch, n], with a LoRA adapter or without. AssertionError
    with its log if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "tokens.npy", Path(folder) / "logits.npy"
        np.save(given, np.atleast_2d(tokens).astype(np.int32))
        _run("logits", model, given, got, adapter, timeout=timeout)
        return np.asarray(np.load(got), dtype=np.float32)


def llama_tokens(model: Path, texts: list[str], *, add_special: bool = False, timeout: float = 120) -> list[list[int]]:
    """Token ids for each text; special tokens in the text are parsed. AssertionError with its log if it
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "texts.json", Path(folder) / "ids.json"
        given.write_text(json.dumps({"texts": texts, "add_special": add_special}))
        _run("tokens", model, given, got, timeout=timeout)
        ids: list[list[int]] = json.loads(got.read_text())
        return ids


def _run(what: str, model: Path, given: Path, got: Path, adapter: Path | None = None, *, timeout: float) -> None:
    command = [sys.executable, __file__, what, str(model), str(given), str(got), *([str(adapter)] if adapter else [])]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    assert done.returncode == 0, f"llama.cpp on {model}: exit {done.returncode}\n{done.stderr[-2000:]}"


class _Blob(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)  # larger than the struct: passed on the stack by value


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Llama:
    """The few functions of llama.h that are needed, with their signatures."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("xllamacpp")
        assert spec is not None, "xllamacpp is not installed"
        assert spec.origin is not None
        self._library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
        pointer, i32, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
        ints = ctypes.POINTER(i32)
        self.model_params = self._bind("llama_model_default_params", _Blob)
        self.context_params = self._bind("llama_context_default_params", _Blob)
        self.load = self._bind("llama_model_load_from_file", pointer, text, _Blob)
        self.context = self._bind("llama_init_from_model", pointer, pointer, _Blob)
        self.free_model = self._bind("llama_model_free", None, pointer)
        self.free_context = self._bind("llama_free", None, pointer)
        self.batch = self._bind("llama_batch_init", _Batch, i32, i32, i32)
        self.free_batch = self._bind("llama_batch_free", None, _Batch)
        self.decode = self._bind("llama_decode", i32, pointer, _Batch)
        self.get_logits = self._bind("llama_get_logits", ctypes.POINTER(ctypes.c_float), pointer)
        self.vocab = self._bind("llama_model_get_vocab", pointer, pointer)
        self.vocab_size = self._bind("llama_vocab_n_tokens", i32, pointer)
        self.tokenize = self._bind("llama_tokenize", i32, pointer, text, i32, ints, i32, ctypes.c_bool, ctypes.c_bool)
        self.load_adapter = self._bind("llama_adapter_lora_init", pointer, pointer, text)
        scales, adapters = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(pointer)
        self.set_adapters = self._bind("llama_set_adapters_lora", i32, pointer, adapters, ctypes.c_size_t, scales)
        self._bind("llama_backend_init", None)()

    def _bind(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, arguments
        return function

    def open(self, model: str) -> int:
        loaded = self.load(model.encode(), self.model_params())
        if not loaded:
            raise SystemExit("llama_model_load_from_file failed")
        return int(loaded)


def _put(blob: _Blob, offset: int, value: int) -> None:
    ctypes.c_int32.from_buffer(blob, offset).value = value


def _logits_of(llama: _Llama, model: int, ids: list[int], adapter: int | None) -> Logits:
    params, count = llama.context_params(), len(ids)
    sizes = {
        "n_ctx": max(64, count),
        "n_batch": count,
        "n_ubatch": count,
        "n_threads": 1,
        "n_threads_batch": 1,
    }
    for name, value in ({"flash_attn_type": 0, "type_k": 0, "type_v": 0} | sizes).items():
        _put(params, CONTEXT_OFFSETS[name], value)
    context = llama.context(model, params)
    if not context:
        raise SystemExit("llama_init_from_model failed")
    if adapter is not None:
        code = llama.set_adapters(context, (ctypes.c_void_p * 1)(adapter), 1, (ctypes.c_float * 1)(1.0))
        assert code == 0, f"llama_set_adapters_lora returned {code}"
    batch = llama.batch(count, 0, 1)
    batch.n_tokens = count
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = (
            token,
            i,
            1,
            0,
            1,
        )
    code = llama.decode(context, batch)
    if code != 0:
        raise SystemExit(f"llama_decode returned {code}")
    shape = (count, llama.vocab_size(llama.vocab(model)))
    logits = np.ctypeslib.as_array(llama.get_logits(context), shape).copy()
    llama.free_batch(batch)
    llama.free_context(context)
    return logits


def _tokens_of(llama: _Llama, model: int, text: str, add_special: bool) -> list[int]:
    raw = text.encode()
    room = (ctypes.c_int32 * (len(raw) + 16))()
    count = llama.tokenize(llama.vocab(model), raw, len(raw), room, len(room), add_special, True)
    if count < 0:
        raise SystemExit(f"llama_tokenize returned {count}")
    return list(room[:count])


def each(models: list[str], tokens: str) -> None:
    """Write the logits of every model that loads beside it, as .npy; .begun lies there as soon as it is opened."""
    llama, (row,) = _Llama(), np.load(tokens)
    for model in models:
        Path(model).with_suffix(".begun").touch()
        loaded = llama.load(model.encode(), llama.model_params())
        if not loaded:
            continue
        try:
            logits = _logits_of(llama, int(loaded), [int(t) for t in row], None)
        except SystemExit:
            continue
        np.save(Path(model).with_suffix(".npy"), logits)
        llama.free_model(loaded)


def main(what: str, model: str, given: str, got: str, lora: str = "") -> None:
    """The child process: `logits` or `tokens`, model, input file, output file, perhaps an adapter."""
    llama = _Llama()
    loaded = llama.open(model)
    if what == "logits":
        rows = np.load(given)
        adapter = llama.load_adapter(loaded, lora.encode()) if lora else None
        assert adapter is not None or not lora, "llama_adapter_lora_init failed"
        np.save(got, np.stack([_logits_of(llama, loaded, [int(t) for t in row], adapter) for row in rows]))
    else:
        asked = json.loads(Path(given).read_text())
        ids = [_tokens_of(llama, loaded, text, asked["add_special"]) for text in asked["texts"]]
        Path(got).write_text(json.dumps(ids))
    llama.free_model(loaded)


if __name__ == "__main__":
    if sys.argv[1] == "each":
        each(sys.argv[2:-1], sys.argv[-1])
    else:
        main(*sys.argv[1:])
