"""The child process that asks onnxruntime-genai for logits, on the CPU. A script without crossdock.

Tokens go in one by one, as in generation: the cache that the library keeps, in place where the graph allows it, takes
part in all but the first. It says the logits of the last token alone.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def main() -> None:
    """Write the logits of the request's windows."""
    request = json.load(sys.stdin)
    import onnxruntime_genai

    model = onnxruntime_genai.Model(request["model"])
    for number, window in enumerate(request["windows"]):
        settings = onnxruntime_genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(window) + 1, do_sample=False)
        generator = onnxruntime_genai.Generator(model, settings)
        rows = []
        for token in window:
            generator.append_tokens(np.array([[token]], np.int32))
            rows.append(np.array(generator.get_logits(), np.float32).reshape(-1))
        np.save(f"{request['out']}/{number}.npy", np.stack(rows))


if __name__ == "__main__":
    main()
