"""Every pickle of the corpus ends at once, in little memory, with a clean error, and runs nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from bounded import run_bounded
from pickle_corpus import BOMBS

NAMES = {f"{index:02d}.pkl": name for index, name in enumerate(BOMBS)}
CALLS = [
    name
    for name, data in BOMBS.items()
    if any(word in data for word in (b"touch", b"pwned", b"evil", b"environ", b"someone", b"sys\npath"))
]

# crossdock's own reader has limits that a loader need not have: these hold data, and cost no more than they hold
DATA = [
    "an integer of 8 MB as key",
    "an integer of 10^6 digits",
    "thousands of tuple keys",
    "a huge integer as key",
    "6,000,000 opcodes",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    for file, name in NAMES.items():
        (folder / file).write_bytes(BOMBS[name])
    return folder


@pytest.fixture(scope="module")
def loaded(files: Path) -> dict[str, dict[str, Any]]:
    return _by_bomb(run_bounded("load", sorted(files.glob("*.pkl")), files))


@pytest.fixture(scope="module")
def scanned(files: Path) -> dict[str, dict[str, Any]]:
    return _by_bomb(run_bounded("scan", sorted(files.glob("*.pkl")), files))


def _by_bomb(answers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {NAMES[file]: answer for file, answer in answers.items()}


@pytest.mark.parametrize("name", BOMBS)
def test_load_refuses(name: str, loaded: dict[str, dict[str, Any]], files: Path) -> None:
    answer = loaded[name]
    kind = answer["answer"].split()[0]
    assert kind in ("UnsafePickleError", "FormatError", "TruncatedPickleError"), answer
    assert answer["seconds"] < 1.0
    assert " byte " in answer["answer"]
    assert not (files / "pwned").exists()


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_unsafe_and_named(name: str, loaded: dict[str, dict[str, Any]]) -> None:
    answer = loaded[name]["answer"]
    assert answer.startswith("UnsafePickleError"), answer
    assert "crossdock scan" in answer or "(opcode SETITEM)" in answer or "(opcode APPEND)" in answer


@pytest.mark.parametrize("name", BOMBS)
def test_scan_reports(name: str, scanned: dict[str, dict[str, Any]], files: Path) -> None:
    answer = scanned[name]
    assert answer["answer"].startswith("found "), answer
    assert (len(answer["answer"].split()) == 1) == (name in DATA), answer
    assert answer["seconds"] < 20.0
    if name in CALLS:
        assert "call" in answer["answer"]
    assert not (files / "pwned").exists()


def test_bombs_in_archives(tmp_path: Path) -> None:
    """The same pickles as data.pkl of a torch.save archive."""
    for file, name in NAMES.items():
        with zipfile.ZipFile(tmp_path / file.replace(".pkl", ".pt"), "w") as archive:
            archive.writestr("archive/data.pkl", BOMBS[name])
            archive.writestr("archive/byteorder", "little")
    answers = run_bounded("open", sorted(tmp_path.glob("*.pt")), tmp_path)
    assert len(answers) == len(BOMBS)
    for answer in answers.values():
        assert answer["answer"].split()[0].endswith("Error"), answer
        assert answer["seconds"] < 1.0
    assert not (tmp_path / "pwned").exists()
