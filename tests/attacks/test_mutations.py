"""A seeded mutation harness over everything that is read: a value or an error with words, and nothing else.

`CROSSDOCK_MUTANTS=50000 pytest tests/attacks/test_mutations.py` runs that many; the default is what CI runs. A failure
names its seed: `CROSSDOCK_SEED=N CROSSDOCK_MUTANTS=1` runs that case alone.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from mutants import READERS, make, mutated

from crossdock.errors import CrossdockError
from crossdock.scan import scan

MUTANTS = int(os.environ.get("CROSSDOCK_MUTANTS", "2000"))
SEED = int(os.environ.get("CROSSDOCK_SEED", "0"))
SECONDS = 5.0  # of CPU for one mutant of a small file
HEAVY = ("tokenizer.json", "kjv.gguf")  # scanned now and then: they are large, and nothing in them is a pickle


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    make(folder)
    return folder


def test_every_mutant_is_read_or_refused_with_words(files: Path) -> None:
    whole = {name: (files / name).read_bytes() for name in READERS}
    read = refused = 0
    for seed in range(SEED, SEED + MUTANTS):
        rng = random.Random(seed)
        name = rng.choice(sorted(READERS))
        target = files / name
        target.write_bytes(mutated(whole[name], rng, name))
        begin, words = time.process_time(), "read"
        try:
            READERS[name](target, files)
            read += 1
        except CrossdockError as error:
            refused += 1
            words = error.text().strip()
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {name}") from error
        assert words, f"seed {seed}: {name}: an error without words"
        if name not in HEAVY or rng.random() < 0.1:
            scan(target)
        assert time.process_time() - begin < SECONDS, f"seed {seed}: {name}"
        target.write_bytes(whole[name])
    assert MUTANTS < 100 or (read > MUTANTS // 20 and refused > MUTANTS // 20)
