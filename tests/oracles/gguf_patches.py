"""GGUF files with one key's value changed, and what llama.cpp makes of each: other logits, the same ones, or a refusal.

Keys are changed in place in the bytes that gguf-py (0.19, `GGUFReader`) finds, so all else stays as it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from oracles import llama_engine

MOVES, STAYS, REFUSED = "moves", "stays", "refused"
TEXTS = {"yarn": "none", "linear": "none", "none": "yarn"}  # other values of text keys


def changed_values(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each key of the architecture (not general.*, not tokenizer.*), and the file's bytes with another value of it."""
    data = path.read_bytes()
    reader = gguf.GGUFReader(path)
    at = reader.data.__array_interface__["data"][0]
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.", "tokenizer.")):
            continue
        for part, new in _others(field):
            offset = part.__array_interface__["data"][0] - at
            assert data[offset : offset + part.nbytes] == part.tobytes()
            yield name, data[:offset] + new + data[offset + part.nbytes :]


def _others(field: Any) -> Iterator[tuple[NDArray[Any], bytes]]:
    """The bytes of a value, and other ones of the same length: several ways to change it, one after another."""
    first = field.parts[field.data[0]]
    kind = field.types[-1]
    if kind == gguf.GGUFValueType.STRING:
        text = bytes(first).decode()
        other = TEXTS.get(text, "x" * len(text))
        yield first, other.ljust(len(text))[: len(text)].encode()
    elif kind == gguf.GGUFValueType.BOOL:
        yield first, bytes([1 - int(first[0])])
    elif first.dtype.kind == "f":
        yield first, (first * 1.5 + (first == 0)).astype(first.dtype).tobytes()
    else:
        for value in dict.fromkeys((int(first[0]) // 2, int(first[0]) + 1, 1)):
            if value != int(first[0]):
                yield first, np.array([value], first.dtype).tobytes()


def effects(path: Path, tokens: NDArray[np.int64], folder: Path) -> dict[str, str]:
    """Key -> what a change of its value does to llama.cpp's logits of `tokens`; the most of several changes."""
    files, keys = [path], [""]
    for number, (key, data) in enumerate(changed_values(path)):
        files.append(folder / f"{number}.gguf")
        files[-1].write_bytes(data)
        keys.append(key)
    np.save(folder / "tokens.npy", tokens.astype(np.int32))
    found = _each(files, folder)
    assert isinstance(found[0], np.ndarray), "llama.cpp does not load the file as it is"
    order = (STAYS, REFUSED, MOVES)
    out: dict[str, str] = {}
    for key, logits in zip(keys[1:], found[1:], strict=True):
        effect = REFUSED if logits is None else STAYS if np.array_equal(logits, found[0], equal_nan=True) else MOVES
        out[key] = max(out.get(key, STAYS), effect, key=order.index)
    return out


def _each(files: Sequence[Path], folder: Path) -> list[NDArray[Any] | None]:
    """The logits of each file, None where llama.cpp refuses it or ends its process over it."""
    todo = list(range(len(files)))
    while todo:
        command = [sys.executable, llama_engine.__file__, "each", *(str(files[number]) for number in todo)]
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # a debugger takes seconds for each
        subprocess.run(
            [*command, str(folder / "tokens.npy")], capture_output=True, check=False, timeout=120, env=environment
        )
        started = [number for number in todo if files[number].with_suffix(".begun").exists()]
        todo = todo[len(started) :] if started else []
    results = [file.with_suffix(".npy") for file in files]
    return [np.load(result) if result.exists() else None for result in results]


def without_effect(found: Mapping[str, str]) -> set[str]:
    """The keys of which llama.cpp takes no notice, without the architecture's name."""
    return {key.partition(".")[2] for key, effect in found.items() if effect == STAYS}
