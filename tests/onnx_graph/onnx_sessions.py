"""A graph in ONNX Runtime, called as programs call it: at once, in chunks, token by token, in a padded batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Logits = NDArray[np.float32]
STEPS, LACKING = 3, 3


class Session:
    """The graph of a folder on the CPU, with one thread."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def call(self, ids: Any, mask: Any, positions: Any, past: dict[str, Any]) -> tuple[Logits, dict[str, Any]]:
        """Logits and the cache behind these tokens."""
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feeds = {name: np.asarray(value, np.int64) for name, value in feeds.items()}
        for node in self.session.get_inputs():
            if node.name.startswith("past"):
                dtype = np.float16 if "16" in node.type else np.float32
                sizes = [size if isinstance(size, int) else 0 for size in node.shape[1:]]
                none = np.zeros((len(ids), *sizes), dtype)
                feeds[node.name] = past.get(node.name, none)
            elif node.name not in feeds:
                raise AssertionError(node.name)
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, feeds), strict=True))
        logits = found.pop("logits")
        again = {name: name.replace("present_", "past_").replace("present.", "past_key_values.") for name in found}
        return logits, {again[name]: one for name, one in found.items()}

    def calls(self, tokens: Any, *ends: int) -> Logits:
        """Logits of one sequence [tokens, vocabulary], in calls that end at `ends`."""
        past: dict[str, Any] = {}
        parts, start = [], 0
        for end in ends:
            logits, past = self.call([tokens[start:end]], np.ones((1, end)), [range(start, end)], past)
            parts.append(logits[0])
            start = end
        return np.concatenate(parts)

    def left_padded(self, tokens: Any) -> tuple[Logits, Logits]:
        """Of a batch: the whole sequence, and one that lacks its last tokens and is padded before.

        The last tokens are asked for one by one.
        """
        n = len(tokens)
        ids = np.array([tokens, [0] * LACKING + list(tokens[: n - LACKING])])
        mask = np.ones((2, n), np.int64)
        mask[1, :LACKING] = 0
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        first = n - STEPS
        logits, past = self.call(ids[:, :first], mask[:, :first], positions[:, :first], {})
        parts = [logits]
        for at in range(first, n):
            now = slice(at, at + 1)
            logits, past = self.call(ids[:, now], mask[:, : at + 1], positions[:, now], past)
            parts.append(logits)
        both = np.concatenate(parts, axis=1)
        return both[0], both[1, LACKING:]

    def right_padded(self, tokens: Any) -> tuple[Logits, Logits]:
        """As above, padded behind: the short sequence's logits with the next token's at the end."""
        n = len(tokens)
        short = n - LACKING
        ids = np.array([tokens, list(tokens[:short]) + [0] * LACKING])
        mask = np.ones((2, n), np.int64)
        mask[1, short:] = 0
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        logits, past = self.call(ids, mask, positions, {})
        more = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        after, _ = self.call([[0], [tokens[short]]], more, [[n], [short]], past)
        return logits[0], np.concatenate([logits[1, :short], after[1]])


def every_way(folder: Path, tokens: Any, ops: str) -> dict[str, tuple[int, Logits]]:
    """What was done -> (the first position, logits from there on)."""
    session, n = Session(folder), len(tokens)
    whole, short = session.left_padded(tokens) if ops == "standard" else session.right_padded(tokens)
    return {
        "at once": (0, session.calls(tokens, n)),
        "in chunks and steps": (0, session.calls(tokens, n // 2, *range(n - STEPS, n + 1))),
        "in a batch": (0, whole),
        "padded": (0, short),
    }
