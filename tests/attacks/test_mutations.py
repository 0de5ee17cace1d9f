"""A seeded mutation harness over the readers of all formats: a value or an error with words, and nothing else.

`CROSSDOCK_MUTANTS=50000 pytest tests/attacks/test_mutations.py` runs that many; the default is what CI runs. A failure
names its seed: `CROSSDOCK_SEED=N CROSSDOCK_MUTANTS=1` runs that case alone.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import changed_bytes, changed_json, cut_off

import crossdock
from crossdock import torchfile
from crossdock.errors import CrossdockError
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.gguf.container import read_header as read_gguf
from crossdock.formats.hf.config import parse
from crossdock.formats.safetensors import read_header as read_safetensors
from crossdock.scan import scan
from crossdock.tokenizers.reading import read as read_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
MUTANTS = int(os.environ.get("CROSSDOCK_MUTANTS", "2000"))
SEED = int(os.environ.get("CROSSDOCK_SEED", "0"))
SECONDS = 5.0  # of CPU for one mutant of a small file

Reader = Callable[[Path], object]
READERS: dict[str, Reader] = {
    "model.safetensors": read_safetensors,
    "config.json": lambda file: parse(file.read_bytes(), str(file)),
    "tokenizer.json": read_tokenizer,
    "model.gguf": read_gguf,
    "zip.pt": lambda file: list(torchfile.state_tensors(torchfile.open_torch(file).root)),
    "legacy.pt": lambda file: list(torchfile.state_tensors(torchfile.open_torch(file).root)),
    "iter/.metadata": lambda file: dcp.read_metadata(file.parent),
    "__0_0.distcp": scan,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    crossdock.run(crossdock.plan(crossdock.open(CHECKPOINT), "hf", tokenizer=TOKENIZER), folder / "hf")
    crossdock.run(crossdock.plan(crossdock.open(CHECKPOINT), "gguf", tokenizer=TOKENIZER), folder / "model.gguf")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        shutil.copy(folder / "hf" / name, folder / name)
    saved = {"model": {"a": torch.ones(2, 3)}, "args": argparse.Namespace(x=1, dtype=torch.bfloat16), "n": 3}
    torch.save(saved, folder / "zip.pt")
    torch.save(saved, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    source = next(CHECKPOINT.glob("iter_*"))
    shutil.copytree(source, folder / "iter")
    shutil.copy(folder / "iter/__0_0.distcp", folder)
    return folder


def mutated(data: bytes, rng: random.Random, name: str) -> bytes:
    if name.endswith((".json", ".safetensors")) and rng.random() < 0.5:
        return changed_json(data, rng)
    return (cut_off if rng.random() < 0.15 else changed_bytes)(data, rng)


def test_every_mutant_is_read_or_refused_with_words(files: Path, tmp_path: Path) -> None:
    whole = {name: (files / name).read_bytes() for name in READERS}
    read = refused = 0
    for seed in range(SEED, SEED + MUTANTS):
        rng = random.Random(seed)
        name = rng.choice(sorted(READERS))
        target = files / name if "/" in name else tmp_path / name
        target.write_bytes(mutated(whole[name], rng, name))
        begin, words = time.process_time(), "read"
        try:
            READERS[name](target)
            read += 1
        except CrossdockError as error:
            refused += 1
            words = error.text().strip()
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {name}") from error
        assert words, f"seed {seed}: {name}: an error without words"
        if name != "tokenizer.json" or rng.random() < 0.1:
            scan(target)
        assert time.process_time() - begin < SECONDS, f"seed {seed}: {name}"
        target.write_bytes(whole[name])
    assert MUTANTS < 100 or (read > MUTANTS // 20 and refused > MUTANTS // 20)
