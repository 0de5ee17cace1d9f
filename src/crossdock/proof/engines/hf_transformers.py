"""The child process that asks Hugging Face transformers for logits, in float32 on the CPU. A script without crossdock.

Reads the folder given and nothing else: no network, no code from the folder. A weight that transformers misses, does
not expect or finds of another shape is a failure, since it would go on with random ones.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Write the logits of the request's windows."""
    request = json.load(sys.stdin)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    import numpy as np
    import torch
    import transformers

    models: Any = transformers.AutoModelForCausalLM
    model, loading = models.from_pretrained(
        request["model"], dtype=torch.float32, attn_implementation="eager", local_files_only=True,
        trust_remote_code=False, output_loading_info=True,
    )  # fmt: skip
    complaints = {what: sorted(map(str, names))[:5] for what, names in loading.items() if names}
    if complaints:
        raise SystemExit(f"transformers says of the weights: {complaints}")
    model.eval()
    with torch.inference_mode():
        for number, window in enumerate(request["windows"]):
            logits = model(torch.tensor([window]), use_cache=False).logits[0]
            np.save(f"{request['out']}/{number}.npy", logits.float().numpy())


if __name__ == "__main__":
    main()
