"""docs/manifest.md against manifests that were written: every key in the one is in the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.running.manifest import SCHEMA

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/manifest.md").read_text()
FREE = {"config", "origins", "ignored"}  # keys of these are names of the model
COUNTED = {"nan", "inf", "overflow", "underflow", "all_zero", "equal_experts", "error"}
TYPES = {"number": int, "text": str, "null": type(None), "object": dict, "true": bool, "false": bool}


def keys(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{at}.{key}" if at else key
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            for one in inner:
                yield from keys(one, f"{name}[]")
        elif isinstance(inner, dict) and name not in FREE:
            yield name, inner
            yield from keys(inner, name)
        else:
            yield name, inner


def documented() -> dict[str, str]:
    """Key -> types, of the table."""
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", PAGE, re.MULTILINE)
    return {name: types for cell, types in rows for name in re.findall(r"`([\w.\[\]]+)`", cell)}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("out")
    checkpoint = crossdock.open(ROOT / "examples/tiny-kjv")
    tokenizer = ROOT / "examples/tiny-kjv-tokenizer"
    for name, to, hash_name, more in (
        ("hf", "hf", "sha256", {"tokenizer": tokenizer}),
        ("x.gguf", "gguf", "xxh3", {"quantize": "q8_0"}),
        ("fp8", "hf", "xxh3", {"quantize": "fp8"}),
    ):
        crossdock.run(crossdock.plan(checkpoint, to, **more), folder / name, hash=hash_name)
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.manifest.json"))]


def test_every_key_is_on_the_page_and_every_key_of_the_page_is_written(manifests: list[dict[str, Any]]) -> None:
    containers = {"source", "target", "tensors[].error"}
    found = {name for one in manifests for name, _ in keys(one)} - containers
    counted = {f"tensors[].{name}" for name in COUNTED}
    errors = {f"tensors[].error.{name}" for name in ("max_abs", "rms", "relative_rms")}
    assert found - counted - errors == set(documented())
    assert all(f"`{name.rpartition('.')[2]}`" in PAGE for name in counted | errors)


def test_values_have_the_types_of_the_page(manifests: list[dict[str, Any]]) -> None:
    for one in manifests:
        for name, value in keys(one):
            types = documented().get(name, "")
            if types.startswith("list"):
                assert isinstance(value, list), name
            elif types:
                assert type(value) in {TYPES[word] for word in types.split(" or ")}, name


def test_what_the_example_is_made_from(manifests: list[dict[str, Any]]) -> None:
    assert {one["manifest"] for one in manifests} == {SCHEMA} == {int(re.findall(r"Schema, version (\d)", PAGE)[0])}
    assert {one["source"]["iteration"] for one in manifests} == {1600}
    assert [one["tokenizer"] is None for one in manifests] == [True, False, True]
    assert {one["target"]["files"][0]["name"] for one in manifests} == {"model.safetensors", "x.gguf"}


def test_neither_place_nor_time_is_in_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model elsewhere, at another time, exported by another command: the same bytes."""
    import os
    import shutil

    written = []
    for number, (memory, workers) in enumerate((("256MiB", 4), ("1MiB", 1))):
        home = tmp_path / f"home {number}"
        shutil.copytree(ROOT / "examples/tiny-kjv", home / "runs" / f"model-{number}")
        shutil.copytree(ROOT / "examples/tiny-kjv-tokenizer", home / f"tok{number}")
        for file in home.rglob("*"):
            os.utime(file, (number * 1000, number * 1000))
        monkeypatch.chdir(home)
        source = Path("runs") / f"model-{number}" if number else home / "runs" / "model-0"
        plan = crossdock.plan(crossdock.open(source), "gguf", quantize="q8_0", tokenizer=Path(f"tok{number}"))
        crossdock.run(plan, "model.gguf", memory=memory, workers=workers)
        written.append(Path("model.gguf.manifest.json").read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]
