"""Rewrites plans.json beside this file: PYTHONPATH=src python tests/golden/regenerate.py

Look at `git diff` afterwards: every changed line is a plan that now does something else.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from crossdock import delivery

HERE = Path(__file__).parent
TARGETS = {
    "hf-f32": ("hf", "float32", None),
    "hf-fp8": ("hf", "auto", "fp8"),
    "gguf-f16": ("gguf", "float16", None),
    "gguf-q8_0": ("gguf", "auto", "q8_0"),
}


def digests(root: Path) -> dict[str, str]:
    """Target -> sha256 over the lines of the plan that exports the checkpoint at `root`."""
    checkpoint = delivery.open(root)
    return {
        name: delivery.plan(checkpoint, to, dtype=dtype, quantize=quantize).digest
        for name, (to, dtype, quantize) in TARGETS.items()
    }


def main() -> None:
    """Unpack every checkpoint of tests/data, plan, write the digests."""
    found = {"tiny-kjv": digests(HERE.parents[1] / "examples/tiny-kjv")}
    with tempfile.TemporaryDirectory() as folder:
        for packed in sorted((HERE.parent / "data/checkpoints").glob("*.tar.xz")):
            with tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")
            name = packed.name.removesuffix(".tar.xz")
            found[name] = digests(Path(folder) / name)
    (HERE / "plans.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
