"""The child process that asks ONNX Runtime for logits, on the CPU. A script without crossdock.

The graph takes `input_ids` [batch, tokens] and gives `logits` (else its first output) [batch, tokens, vocab_size].
Inputs that decoders have beside it are filled as for a first pass: attention_mask with ones, position_ids from 0, a
cache (past_key_values.*) of length 0. Names are those of onnxruntime-genai and of optimum.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
         "tensor(float16)": np.float16, "tensor(bool)": np.bool_}  # fmt: skip


def main() -> None:
    """Write the logits of the request's windows."""
    request = json.load(sys.stdin)
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(_graph(Path(request["model"]))), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    wanted = "logits" if "logits" in outputs else outputs[0]
    for number, window in enumerate(request["windows"]):
        feeds = {node.name: _input(node, window) for node in session.get_inputs()}
        logits = session.run([wanted], feeds)[0][0]
        np.save(f"{request['out']}/{number}.npy", logits.astype(np.float32))


def _graph(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.onnx"))
    if len(found) > 1 and path / "model.onnx" in found:
        return path / "model.onnx"
    if len(found) != 1:
        raise SystemExit(f"one .onnx file is needed, there are {len(found)}: {', '.join(f.name for f in found)}")
    return found[0]


def _input(node: Any, window: list[int]) -> Any:
    if node.type not in TYPES:
        raise SystemExit(f"the graph's input {node.name} is of type {node.type}")
    dtype, name = TYPES[node.type], node.name
    if name == "input_ids":
        return np.array([window], dtype)
    if name == "attention_mask":
        return np.ones((1, len(window)), dtype)
    if name == "position_ids":
        return np.arange(len(window), dtype=dtype)[None]
    if name.startswith("past"):
        sizes = [size if isinstance(size, int) else 0 for size in node.shape]
        return np.zeros([1, *sizes[1:]], dtype)
    raise SystemExit(f"the graph wants an input that is not known: {name} {node.type} {node.shape}")


if __name__ == "__main__":
    main()
