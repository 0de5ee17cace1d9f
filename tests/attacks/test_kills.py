"""A seeded kill harness: exports killed at random moments and run again.

`CROSSDOCK_KILLS=300 pytest tests/attacks/test_kills.py` kills that many; the default is what CI runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("CROSSDOCK_KILLS", "16"))
SEED = int(os.environ.get("CROSSDOCK_SEED", "0"))


def test_a_killed_export_goes_on_and_gives_the_same_bytes() -> None:
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(script), "--kills", str(KILLS), "--seed", str(SEED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60 + 3 * KILLS)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
