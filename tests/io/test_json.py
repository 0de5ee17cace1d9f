"""JSON that is made to cost more than it holds is refused before anything is built of it; in time that is linear."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.errors import InputError
from crossdock.io.json import CONFIGURATION, TOKENIZER, JsonLimits, measured, parse_json
from crossdock.tokenizers.reading import read

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-kjv"
TOKENS = ROOT / "examples" / "tiny-kjv-tokenizer"


def test_ordinary_documents_are_read_as_python_reads_them() -> None:
    rng = random.Random(3)

    def value(depth: int) -> Any:
        kind = rng.randrange(8 if depth < 5 else 5)
        if kind < 5:
            return rng.choice([None, True, 1.5, -3, '"\\"[{,\\\\', "é▁\\", "", "[[[["])
        if kind == 5:
            return {f'{n}\\"': value(depth + 1) for n in range(rng.randrange(4))}
        return [value(depth + 1) for _ in range(rng.randrange(4))]

    for _ in range(500):
        made = value(0)
        for ascii_only in (True, False):
            data = json.dumps(made, ensure_ascii=ascii_only).encode()
            assert parse_json(data, CONFIGURATION) == made


@pytest.mark.parametrize(
    ("data", "values", "depth"),
    [
        (b"1", 0, 0),
        (b"[]", 1, 1),
        (b'{"a": [1, 2, {"b": []}]}', 6, 4),
        (b'["[[[", "{\\"{", "\\\\"]', 3, 1),
        (b'["never ends, [[[', 1, 1),
        (b"]]]][", 1, 0),
    ],
)
def test_values_and_depth_are_counted_outside_of_strings(data: bytes, values: int, depth: int) -> None:
    assert measured(data, 10**9) == (values, depth)


COSTLY: dict[str, Callable[[int], bytes]] = {
    "empty lists": lambda size: b'{"x":[' + b"[]," * (size // 3) + b"0]}",
    "empty objects": lambda size: b'{"x":[' + b"{}," * (size // 3) + b"0]}",
    "numbers": lambda size: b'{"x":[' + b"1.5," * (size // 4) + b"0]}",
    "short strings": lambda size: b'{"x":[' + b'"\\u0101",' * (size // 9) + b"0]}",
    "nesting": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "nesting of objects": lambda size: b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6),
    "escapes without an end": lambda size: b'{"a":"' + b'\\"' * (size // 2),
    "quotes without an end": lambda size: b'"a' * (size // 2),
    "spaces": lambda size: b" " * size,
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_costly_document_takes_little_memory_and_linear_time(kind: str) -> None:
    seconds = []
    for size in (2 << 20, 8 << 20):
        data = COSTLY[kind](size)
        tracemalloc.start()
        begin = time.process_time()
        with pytest.raises(ValueError, match=r"\w"):
            parse_json(data, CONFIGURATION)
        seconds.append(time.process_time() - begin)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * size + (2 << 20)
    assert seconds[1] < 8 * seconds[0] + 0.5


def test_deep_nesting_of_a_configuration_is_an_error_of_the_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    crossdock.run(crossdock.plan(crossdock.open(CHECKPOINT), "hf", tokenizer=TOKENS), source)
    text = (source / "config.json").read_text().rstrip()
    for nested in ("[" * 900 + "]" * 900, "[" * 100_000 + "]" * 100_000):
        (source / "config.json").write_text(text[:-1] + ',"y":' + nested + "}")
        with pytest.raises(InputError, match=r"nested|values"):
            crossdock.open(source)
    (source / "config.json").write_text(text[:-1] + ',"x":[' + "[]," * 1_000_000 + "0]}")
    with pytest.raises(InputError, match="values"):
        crossdock.open(source)


def test_limits_grow_with_the_document() -> None:
    limits = JsonLimits(values=10, density=100, most=50)
    assert parse_json(b"[" + b"1," * 8 + b"1]", limits)
    with pytest.raises(ValueError, match="limit"):
        parse_json(b"[" + b"1," * 20 + b"1]", limits)
    assert parse_json(b"[" + b'"' + b"a" * 5000 + b'",' + b"1," * 20 + b"1]", limits)
    with pytest.raises(ValueError, match="limit"):
        parse_json(b"[" + b'"' + b"a" * 50000 + b'",' + b"1," * 60 + b"1]", limits)


def tokenizer_with(change: Callable[[dict[str, Any]], None], folder: Path) -> Path:
    folder.mkdir()
    for file in TOKENS.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = json.loads((folder / "tokenizer.json").read_bytes())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_a_small_tokenizer_that_would_expand_is_refused(tmp_path: Path) -> None:
    def far_id(data: dict[str, Any]) -> None:
        data["added_tokens"].append({"id": 4_000_000, "content": "<far>", "special": True})

    with pytest.raises(InputError, match="far more gaps"):
        read(tokenizer_with(far_id, tmp_path / "far"))


def test_merges_given_twice_are_refused(tmp_path: Path) -> None:
    def twice(data: dict[str, Any]) -> None:
        data["model"]["merges"] += data["model"]["merges"][:3]

    with pytest.raises(InputError, match="3 merges occur twice"):
        read(tokenizer_with(twice, tmp_path / "twice"))


def test_a_tokenizer_of_many_values_is_refused_before_it_is_built(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model":{},"x":[' + b"[]," * 5_000_000 + b"0]}")
    tracemalloc.start()
    with pytest.raises(InputError, match="values"):
        read(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 3 * (tmp_path / "tokenizer.json").stat().st_size
    tracemalloc.stop()
    assert TOKENIZER.most >= 3_000_000  # Gemma 3 has 1.8 million
