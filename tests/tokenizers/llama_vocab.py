"""llama.cpp's own vocabulary as a test oracle, through the C API that the xllamacpp wheel exports (ctypes
only).

It loads a GGUF with `vocab_only`, so no tensors are needed. ggml aborts the process on bad input, therefore
everything runs in a subprocess: as a script it reads a JSON request on standard input and prints a JSON
answer. Pinned to xllamacpp==2026.10.11549 (llama.cpp b11549): llama_model_params is an opaque by-value blob
of which only `vocab_only` is written, at an offset that `_load` checks against the defaults.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

VOCAB_ONLY = 72  # byte offset in llama_model_params; check_tensors (false) and use_extra_bufts (true) follow it


@dataclass(frozen=True)
class Vocab:
    """What llama.cpp made of a vocabulary. `ids[i]` are the tokens of `texts[i]`, `error` is why it did not
    load.
    """

    error: str
    ids: list[list[int]]
    pieces: list[bytes]
    special: dict[str, int]
    end_tokens: list[int]
    log: str
    size: int = 0


def write_vocab(path: Path, metadata: Iterable[tuple[str, str, Any]]) -> Path:
    """A GGUF without tensors that holds only the architecture and `metadata` (key, GGUF type name, value)."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, kind, value in metadata:
        add_metadata(writer, key, kind, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def add_metadata(writer: gguf.GGUFWriter, key: str, kind: str, value: Any) -> None:
    """Add one key to gguf's writer with exactly the type that is named: "uint32", "array[string]", ..."""
    if kind.startswith("array["):
        element = gguf.GGUFValueType[kind[len("array[") : -1].upper()]
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, sub_type=element)
    else:
        writer.add_key_value(key, value, gguf.GGUFValueType[kind.upper()])


def ask(
    path: Path,
    texts: Sequence[str] = (),
    *,
    add_special: bool = False,
    parse_special: bool = True,
    timeout: float = 120,
) -> Vocab:
    """Load the vocabulary of the GGUF at `path` in a subprocess and tokenize `texts` with it."""
    return ask_many([(path, texts)], add_special=add_special, parse_special=parse_special, timeout=timeout)[0]


def ask_many(
    jobs: Sequence[tuple[Path, Sequence[str]]],
    *,
    add_special: bool = False,
    parse_special: bool = True,
    timeout: float = 120,
) -> list[Vocab]:
    """As `ask`, for several files in one process. A job that aborts the process fails them all."""
    request = {
        "jobs": [[str(path), list(texts)] for path, texts in jobs],
        "add_special": add_special,
        "parse_special": parse_special,
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        return [Vocab(f"exit {done.returncode}: {done.stderr[-2000:]}", [], [], {}, [], "")] * len(jobs)
    answers = json.loads(done.stdout.splitlines()[-1])
    return [Vocab(**{**a, "pieces": [bytes.fromhex(piece) for piece in a["pieces"]]}) for a in answers]


class _Blob(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


class _Llama:
    """The functions of the shared library that are needed here, with their signatures."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("xllamacpp")
        assert spec is not None
        assert spec.origin is not None
        self.library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
        self.log: list[str] = []
        log_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._keep = log_type(lambda level, text, _: self.log.append(text.decode("utf-8", "replace")))
        self.function("llama_log_set", None, log_type, ctypes.c_void_p)(self._keep, None)
        self.function("llama_backend_init", None)()
        pointer, int32, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
        self.defaults = self.function("llama_model_default_params", _Blob)
        self.load = self.function("llama_model_load_from_file", pointer, ctypes.c_char_p, _Blob)
        self.free = self.function("llama_model_free", None, pointer)
        self.get_vocab = self.function("llama_model_get_vocab", pointer, pointer)
        self.size = self.function("llama_vocab_n_tokens", int32, pointer)
        self.is_end = self.function("llama_vocab_is_eog", flag, pointer, int32)
        tokens = ctypes.POINTER(ctypes.c_int32)
        self.tokenize = self.function(
            "llama_tokenize", int32, pointer, ctypes.c_char_p, int32, tokens, int32, flag, flag
        )
        self.piece = self.function("llama_token_to_piece", int32, pointer, int32, ctypes.c_char_p, int32, int32, flag)

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(self.library, name)
        found.restype, found.argtypes = result, arguments
        return found


def _answer(llama: _Llama, path: str, texts: list[str], add_special: bool, parse_special: bool) -> dict[str, Any]:
    llama.log.clear()
    parameters = llama.defaults()
    assert list(parameters.bytes[VOCAB_ONLY : VOCAB_ONLY + 5]) == [0, 0, 1, 0, 0], (
        "llama_model_params has another layout"
    )
    parameters.bytes[VOCAB_ONLY] = 1
    model = llama.load(path.encode(), parameters)
    if not model:
        return {
            "error": "".join(llama.log)[-2000:],
            "ids": [],
            "pieces": [],
            "special": {},
            "end_tokens": [],
            "log": "",
        }
    vocab = llama.get_vocab(model)
    size = llama.size(vocab)
    special = {
        name: llama.function(f"llama_vocab_{name}", ctypes.c_int32, ctypes.c_void_p)(vocab)
        for name in ("bos", "eos", "eot", "sep", "pad")
    }
    for flag in ("add_bos", "add_eos"):
        special[flag] = int(llama.function(f"llama_vocab_get_{flag}", ctypes.c_bool, ctypes.c_void_p)(vocab))
    ids = []
    for text in texts:
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = llama.tokenize(vocab, raw, len(raw), room, len(room), add_special, parse_special)
        assert count >= 0
        ids.append(list(room[:count]))
    pieces = []
    kind = llama.function("llama_vocab_type", ctypes.c_int32, ctypes.c_void_p)(vocab)
    for token in range(size if kind else 0):  # type 0 has no token texts, and asking for one aborts
        room_for_piece = ctypes.create_string_buffer(4096)
        length = llama.piece(vocab, token, room_for_piece, len(room_for_piece), 0, True)
        assert length >= 0
        pieces.append(room_for_piece.raw[:length].hex())
    end_tokens = [token for token in range(size) if llama.is_end(vocab, token)]
    llama.free(model)
    log = "".join(llama.log)
    return {
        "error": "",
        "ids": ids,
        "pieces": pieces,
        "special": special,
        "end_tokens": end_tokens,
        "log": log,
        "size": size,
    }


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    llama = _Llama()
    flags = request["add_special"], request["parse_special"]
    print(json.dumps([_answer(llama, path, texts, *flags) for path, texts in request["jobs"]]))


if __name__ == "__main__":
    main()
