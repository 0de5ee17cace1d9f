"""scripts/compare_families: a table of a folder of references, and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from family_cases import case

SCRIPT = Path(__file__).parents[2] / "scripts/compare_families"


def references(name: str, root: Path) -> Path:
    """A recorded case as a folder of references of its own, as other tools write them."""
    recorded = case(name)
    assert recorded.gguf is not None
    recorded.write(root / name / "hf")
    np.save(root / name / "tokens.npy", recorded.tokens)
    np.save(root / name / "logits.npy", recorded.logits)
    about = {"model_type": recorded.model_type, "tolerance": recorded.recipe.tolerance}
    (root / name / "case.json").write_text(json.dumps(about))
    listing = {
        "keys": {k: {"type": kind.split(":"), "value": value} for k, (kind, value) in recorded.gguf.keys.items()},
        "tensors": [
            {"name": t.name, "shape": t.shape, "type": t.type, "sha256": t.sha256} for t in recorded.gguf.tensors
        ],
    }
    (root / name / "gguf.json").write_text(json.dumps(listing))
    return root / name


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def changed(folder: Path, what: str) -> None:
    """The references of a folder with one fault."""
    if what == "logits":
        np.save(folder / "logits.npy", np.load(folder / "logits.npy") + np.float32(1e-3))
        return
    listing = json.loads((folder / "gguf.json").read_text())
    if what == "bytes":
        listing["tensors"][3]["sha256"] = "0" * 64
    elif what == "tensor":
        listing["tensors"].pop(3)
    else:
        listing["keys"]["llama.attention.layer_norm_rms_epsilon"]["value"] *= 2
    (folder / "gguf.json").write_text(json.dumps(listing))


def test_a_model_like_its_references_is_the_same(tmp_path: Path) -> None:
    references("llama", tmp_path)
    done = compare(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 same, 0 differs, 0 refused" in done.stdout


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("bytes", "has other bytes"),
        ("tensor", "is not one of the converter's"),
        ("key", "layer_norm_rms_epsilon is FLOAT32"),
        ("logits", "forward: "),
    ],
)
def test_one_difference_is_seen(what: str, says: str, tmp_path: Path) -> None:
    changed(references("llama", tmp_path), what)
    done = compare(tmp_path, "--details", "llama")
    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stdout
    assert "0 same, 1 differs, 0 refused" in done.stdout


def test_a_model_that_crossdock_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = references("llama", tmp_path)
    config = json.loads((folder / "hf/config.json").read_text())
    (folder / "hf/config.json").write_text(json.dumps(config | {"model_type": "unheard", "architectures": ["Odd"]}))
    done = compare(tmp_path)
    assert done.returncode == 0
    assert "0 same, 0 differs, 1 refused" in done.stdout


def test_a_case_that_is_not_there(tmp_path: Path) -> None:
    assert compare(references("llama", tmp_path).parent, "lama").returncode == 2
