"""Logits from Hugging Face transformers in float32 on one CPU thread, and what it says about the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Tokens = NDArray[np.integer[Any]]


def transformers_logits(folder: Path, tokens: Tokens) -> Logits:
    """float32 logits [batch, n, vocabulary] for `tokens` [batch, n].

    AssertionError when transformers finds a weight missing, unexpected or of another shape.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    models: Any = transformers.AutoModelForCausalLM
    model, loading = models.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    complaints = {what: names for what, names in loading.items() if names}
    assert not complaints, f"transformers on {folder}: {complaints}"
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(np.atleast_2d(tokens).astype(np.int64))).logits
    return np.asarray(logits.float().numpy(), dtype=np.float32)
