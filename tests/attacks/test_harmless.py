"""Every name that the scan calls harmless and that is installed is called with everything that a pickle may hand it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossdock.scan.harmless import CALL, CALLER, CONSTANT, LOADER, NEW, TYPE, names


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("effects")
    command = [sys.executable, str(Path(__file__).with_name("harmless_run.py")), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_harmless_name_acts_when_called(told: list[dict[str, Any]]) -> None:
    """None calls or makes what it is given, opens, imports, starts or connects, or is found under a re-export."""
    assert told[:-1] == []
    assert told[-1]["left"] == []


def test_most_names_were_tried(told: list[dict[str, Any]]) -> None:
    assert told[-1]["tried"] > 200


def test_every_name_has_a_use_and_a_reason() -> None:
    uses = {CONSTANT, TYPE, NEW, CALL, CALLER, LOADER}
    for name in names().values():
        assert name.use in uses, name.qualified
        assert name.why, name.qualified
        assert "*" not in name.module + name.name
        assert (name.use == CALLER) == bool(name.takes_names), name.qualified
        for allowed in name.takes_names.values():
            for one in allowed - {"@object"}:
                assert any(f"@{other.role}" == one for other in names().values()), (name.qualified, one)
