"""Fixtures for the whole suite: the command line, the real Megatron checkpoints, tiny models made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import hf_models, peft_adapters

# test processes share the machine: one thread each, and no look at the network from transformers
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

TESTS = Path(__file__).parent
CHECKPOINTS, FAMILY_CHECKPOINTS = (
    tuple(sorted(file.name.removesuffix(".tar.xz") for file in (TESTS / "data" / kind).glob("*.tar.xz")))
    for kind in ("checkpoints", "families")
)


@dataclass(frozen=True)
class Answer:
    """What the command line said: exit code and both streams."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.stdout)

    def ok(self) -> Answer:
        """Itself; AssertionError with all output when the exit code is not 0."""
        assert self.code == 0, f"exit {self.code}\n{self.stdout[-3000:]}\n{self.stderr[-3000:]}"
        return self


def run_crossdock(*arguments: str | Path, timeout: float = 120, env: dict[str, str] | None = None) -> Answer:
    """`crossdock ARGUMENTS...` in a process of its own, as a user runs it. No traceback may ever show."""
    command = [sys.executable, "-m", "crossdock", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ | (env or {})
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def crossdock() -> Callable[..., Answer]:
    """The command line as a function."""
    return run_crossdock


@pytest.fixture(scope="session")
def trtllm_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a reference in tests/data/trtllm -> its folder, unpacked once a session; never write there."""
    base = tmp_path_factory.mktemp("trtllm")

    def unpacked(name: str) -> Path:
        if not (base / name).exists():
            with tarfile.open(TESTS / "data/trtllm" / f"{name}.tar.xz") as archive:
                archive.extractall(base, filter="data")
        return base / name

    return unpacked


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's training files of 2023, in ggcp, ggcl, generated, expected, support; never write there."""
    base = tmp_path_factory.mktemp("legacy")
    with tarfile.open(TESTS / "data/ggml/legacy-training.tar.xz") as archive:
        archive.extractall(base, filter="data")
    return base / "ggml"


@pytest.fixture(scope="session")
def megatron_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in a folder of tests/data (or "tiny-kjv") -> the folder, unpacked once a session;
    never write there."""
    base = tmp_path_factory.mktemp("megatron")

    def unpacked(name: str) -> Path:
        if name == "tiny-kjv":
            return TESTS.parent / "examples" / name
        folder = base / name
        if not folder.exists():
            kinds = (
                TESTS / "data" / kind / f"{name}.tar.xz" for kind in ("checkpoints", "families", "megatron", "adapters")
            )
            with tarfile.open(next(file for file in kinds if file.is_file())) as archive:
                archive.extractall(base, filter="data")
        return folder

    return unpacked


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Recipe of tests/support/hf_models.py -> a bfloat16 folder, made once a session; do not write there."""
    base = tmp_path_factory.mktemp("hf")

    def made(recipe: str) -> Path:
        folder = base / recipe
        return folder if folder.exists() else hf_models.make_hf(recipe, folder)

    return made


@pytest.fixture(scope="session")
def adapter_bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in `support.peft_adapters.MODELS` -> the folder of a float32 model, made once a session."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = peft_adapters.made_model(tmp_path_factory.mktemp(name), *peft_adapters.MODELS[name])
        return made[name]

    return folder


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    """Rows of cells, printed past pytest's capturing under the module's TITLE when its tests have run."""
    rows: list[tuple[str, ...]] = []
    yield rows
    capturing: Any = request.config.pluginmanager.getplugin("capturemanager")
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    with capturing.global_and_fixture_disabled():
        print(f"\n{len(rows)} {request.module.TITLE}:")
        for row in rows:
            print("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
