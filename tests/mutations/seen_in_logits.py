"""What the logits of the reference forward say of a file with a fault, held against those of the file without."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crossdock.errors import CrossdockError
from crossdock.model.tensors import Array
from reference import reference_logits


def logits_of(out: Path) -> Array | None:
    """Logits for 80 tokens; None where the file does not open by itself."""
    try:
        return reference_logits(out, np.arange(3, 83))
    except CrossdockError:
        return None


def seen_in_logits(out: Path, good: Path) -> str:
    """How far the logits of `out` are off, or why they cannot be compared."""
    got, expected = logits_of(out), logits_of(good)
    if expected is None:  # Llama 3.1's GGUF has divisors where a configuration has parameters
        return "needs --config"
    if got is None:
        return "does not open"
    if got.shape != expected.shape:
        return "another number of logits"
    far = np.abs(got - expected).max()
    return f"{far:.0e} off" if far > 1e-4 else "same logits"
