"""Rewrites the JSON files beside this one: PYTHONPATH=src python tests/golden/regenerate.py

Look at `git diff` afterwards: every changed line is a field that is now read as something else, or a plan that now
does something else.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden_cases import unpacked
from golden_files import store
from golden_records import recorded


def main() -> None:
    """Unpack every source, read and plan, and write what is kept."""
    with tempfile.TemporaryDirectory() as folder:
        cases = unpacked(Path(folder))
        store({name: recorded(case) for name, case in sorted(cases.items())}, cases)


if __name__ == "__main__":
    sys.exit(main())
