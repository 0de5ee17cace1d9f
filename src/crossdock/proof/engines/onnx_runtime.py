"""The child process that asks ONNX Runtime for logits, on the CPU. A script without crossdock.

The graph takes `input_ids` [batch, tokens] and gives `logits` (else its first output) [batch, tokens, vocab_size].
Inputs that decoders have beside it are filled as for a first pass: attention_mask with ones, position_ids from 0, a
cache (past_key_values.*) of length 0. Names are those of onnxruntime-genai and of optimum.

A graph with a cache is run in other ways too, as programs that generate run it: in chunks, token by token, and in a
batch with a shorter sequence that is padded, where the graph's metadata says that it may be ("padding"). The logits of
each way must be those of the first pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
         "tensor(float16)": np.float16, "tensor(bool)": np.bool_}  # fmt: skip
STEPS = 4  # tokens that are asked for one by one
PADDING = 3  # tokens that the shorter sequence of a batch lacks
# distance of a way's logits from those of the first pass, relative, at its middle position
CLOSE = {"tensor(float)": 1e-4, "tensor(float16)": 5e-2}


class Graph:
    """A session, and what a call of it needs."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.wanted = "logits" if "logits" in self.outputs else self.outputs[0]
        self.past = {node.name: node for node in self.inputs if node.name.startswith("past")}
        self.present = {name: name.replace("past_key_values", "present") for name in self.past}
        self.present |= {name: "present_conv" + name[len("past_conv") :] for name in self.past if "past_conv" in name}
        self.cached = bool(self.past) and set(self.present.values()) <= set(self.outputs)
        self.padding = self.session.get_modelmeta().custom_metadata_map.get("padding", "")

    def call(self, ids: Any, mask: Any, positions: Any, past: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Logits of `ids` [batch, tokens] as float32, and the cache behind them."""
        known = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feeds: dict[str, Any] = {}
        for node in self.inputs:
            if node.type not in TYPES:
                raise SystemExit(f"the graph's input {node.name} is of type {node.type}")
            if node.name in known:
                feeds[node.name] = np.asarray(known[node.name], TYPES[node.type])
            elif node.name in self.past:
                sizes = [size if isinstance(size, int) else 0 for size in node.shape]
                feeds[node.name] = past.get(node.name, np.zeros([len(ids), *sizes[1:]], TYPES[node.type]))
            else:
                raise SystemExit(f"the graph wants an input that is not known: {node.name} {node.type} {node.shape}")
        names = [self.wanted, *(self.present.values() if self.cached else ())]
        logits, *present = self.session.run(names, feeds)
        return logits.astype(np.float32), dict(zip(self.past, present, strict=False))

    def one_sequence(self, window: list[int], ends: list[int]) -> Any:
        """Logits of one sequence in calls that end at `ends`, the last of which is its length."""
        past: dict[str, Any] = {}
        parts, start = [], 0
        for end in ends:
            mask, positions = np.ones((1, end)), np.arange(start, end)[None]
            logits, past = self.call(np.array([window[start:end]]), mask, positions, past)
            parts.append(logits[0])
            start = end
        return np.concatenate(parts)


def main() -> None:
    """Write the logits of the request's windows."""
    request = json.load(sys.stdin)
    graph = Graph(_graph(Path(request["model"])))
    for number, window in enumerate(request["windows"]):
        logits = graph.one_sequence(window, [len(window)])
        if graph.cached:
            for way, first, rows in _other_ways(graph, window):
                _demand_alike(graph, logits[first : first + len(rows)], rows, way)
        np.save(f"{request['out']}/{number}.npy", logits)


def _other_ways(graph: Graph, window: list[int]) -> Iterator[tuple[str, int, Any]]:
    """(what was done, the first position, logits from there on) of every way to ask for the same logits."""
    n = len(window)
    steps = max(n - STEPS, 1)
    chunk = max(steps // 2, 1)
    ends = sorted({chunk, steps, *range(steps, n + 1)})
    rows = graph.one_sequence(window, ends)
    yield "in a second chunk behind a cache", chunk, rows[chunk:steps]
    yield "token by token behind a cache", steps, rows[steps:]
    lacking = min(PADDING, n - 2)
    if not graph.padding or lacking < 1:
        return
    ahead = graph.padding == "anywhere"
    short = n - lacking
    kept = np.arange(n) >= lacking if ahead else np.arange(n) < short
    ids, mask = np.zeros((2, n), np.int64), np.ones((2, n), np.int64)
    ids[0], ids[1, kept], mask[1] = window, window[:short], kept
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    if ahead:  # the last token by itself
        _, past = graph.call(ids[:, :-1], mask[:, :-1], positions[:, :-1], {})
        logits, _ = graph.call(ids[:, -1:], mask, positions[:, -1:], past)
    else:  # one more token for each: the first sequence's last again, the second's next
        logits, past = graph.call(ids, mask, positions, {})
        yield "in a batch with a padded sequence", 0, logits[0]
        more = np.array([[window[-1]], [window[short]]])
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        logits, _ = graph.call(more, mask, np.array([[n], [short]]), past)
    yield f"in a batch, padded {'before' if ahead else 'behind'}", short - ahead, logits[1]


def _demand_alike(graph: Graph, logits: Any, rows: Any, way: str) -> None:
    kind = next(iter(graph.past.values())).type
    size = np.sqrt(np.var(logits, axis=-1) * logits.shape[-1])
    distance = np.linalg.norm(rows - logits, axis=-1) / np.maximum(size, np.finfo(np.float32).tiny)
    if len(distance) and not np.median(distance) <= CLOSE.get(kind, 5e-2):
        raise SystemExit(f"the graph gives other logits {way}: the relative distance is {np.median(distance):.3g}")


def _graph(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.onnx"))
    if len(found) > 1 and path / "model.onnx" in found:
        return path / "model.onnx"
    if len(found) != 1:
        raise SystemExit(f"one .onnx file is needed, there are {len(found)}: {', '.join(f.name for f in found)}")
    return found[0]


if __name__ == "__main__":
    main()
