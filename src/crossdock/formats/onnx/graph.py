"""Nodes, values and initializers of an ONNX graph, as a model is written down. Knows no model.

A value is [tokens, width] unless it says otherwise; its element type travels along, so that a float16 graph computes in
float32 where its operators meet float32 values, as PyTorch promotes. Needs the package `onnx`.
Facts: onnx 1.23 (onnx.proto, operators of opset 23), ONNX Runtime 1.32 (com.microsoft).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

OPSET, IR = 23, 11
CONTRIB = "com.microsoft"
PRODUCER = "crossdock"
TYPES = {
    "float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16,
    "int64": onnx.TensorProto.INT64, "int32": onnx.TensorProto.INT32, "bool": onnx.TensorProto.BOOL,
}  # fmt: skip


class Value(NamedTuple):
    """What a node gives: its name, its element type, and how many elements its last axis has (0: not known)."""

    name: str
    dtype: str
    width: int = 0


class External(NamedTuple):
    """Bytes of a file of the folder that are a tensor: `shape` of `dtype`, from byte `offset` on."""

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Graph:
    """A graph that is being written. `dtype` is that of weights and of what flows between layers."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._initializers: dict[Any, Any] = {}
        self._counts: dict[str, int] = {}
        self._scope: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes that are made inside have `name` before their own."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def op(
        self, kind: str, *inputs: Value | None, dtype: str = "", width: int | None = None, domain: str = "",
        **attributes: Any,
    ) -> Value:  # fmt: skip
        """The output of one node. By default of the type and the width of its first input. None: no such input."""
        return self.ops(kind, *inputs, outputs=1, dtype=dtype, width=width, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: Value | None, outputs: int | Sequence[str], dtype: str = "",
        width: int | None = None, domain: str = "", **attributes: Any,
    ) -> list[Value]:  # fmt: skip
        """All outputs of a node with several. outputs: their names, or how many."""
        name = self._unique(kind)
        names = (
            [name if outputs == 1 else f"{name}.{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        )
        first = next((value for value in inputs if value is not None), None)
        own = dtype or (first.dtype if first else "")
        wide = width if width is not None else first.width if first else 0
        taken = ["" if value is None else value.name for value in inputs]
        while taken and not taken[-1]:
            taken.pop()
        self._nodes.append(helper.make_node(kind, taken, list(names), name=name, domain=domain, **attributes))
        return [Value(one, own, wide) for one in names]

    def constant(self, values: Any, dtype: str) -> Value:
        """A small tensor that is stored in the graph; equal ones are stored once."""
        array: NDArray[Any] = np.asarray(values, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._initializers:
            name = f"constant.{len(self._initializers)}"
            self._initializers[key] = helper.make_tensor(name, TYPES[dtype], array.shape, array.tobytes(), raw=True)
        width = array.shape[-1] if array.shape else 1
        return Value(self._initializers[key].name, dtype, width)

    def external(self, name: str, at: External) -> Value:
        """A tensor whose bytes lie in a file of the folder; one that is asked for twice is stored once."""
        if at not in self._initializers:
            tensor = onnx.TensorProto(
                name=self._unique(name, scoped=False), data_type=TYPES[at.dtype], dims=at.shape,
                data_location=onnx.TensorProto.EXTERNAL,
            )  # fmt: skip
            size = int(np.prod(at.shape)) * np.dtype(at.dtype).itemsize
            for key, value in (("location", at.file), ("offset", str(at.offset)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            self._initializers[at] = tensor
        return Value(self._initializers[at].name, at.dtype, at.shape[-1] if at.shape else 1)

    @contextmanager
    def body(self) -> Iterator[list[Any]]:
        """Nodes that are made inside are those of a subgraph, which is the list that this gives."""
        outer, self._nodes = self._nodes, []
        yield self._nodes
        self._nodes = outer

    def model(self, name: str, notes: Mapping[str, str]) -> bytes:
        """The whole, serialised: the same bytes for the same graph. notes: metadata for programs that run it."""
        made = helper.make_graph(self._nodes, name, self.inputs, self.outputs, list(self._initializers.values()))
        imports = [helper.make_opsetid("", OPSET)]
        if any(node.domain == CONTRIB for node in self._nodes):
            imports.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(made, producer_name=PRODUCER, opset_imports=imports, ir_version=IR)
        helper.set_model_props(model, dict(notes))
        serialised: bytes = model.SerializeToString(deterministic=True)
        return serialised

    def name(self, name: str) -> str:
        """A name that nothing else of the graph has."""
        return self._unique(name)

    def _unique(self, name: str, *, scoped: bool = True) -> str:
        full = "/".join((*self._scope, name)) if scoped else name
        count = self._counts.get(full, 0)
        self._counts[full] = count + 1
        return f"{full}.{count}" if count else full

    # What models are made of, in the words of numpy.

    def cast(self, x: Value, dtype: str) -> Value:
        """Return x in another type."""
        return x if x.dtype == dtype else self.op("Cast", x, dtype=dtype, to=TYPES[dtype])

    def binary(self, kind: str, a: Value, b: Value | float) -> Value:
        """Add, Sub, Mul, Div, Min, Max or Pow; of float16 and float32 the larger type."""
        if not isinstance(b, Value):
            b = self.constant(b, a.dtype)
        dtype = "float32" if {a.dtype, b.dtype} == {"float32", "float16"} else a.dtype
        return self.op(kind, self.cast(a, dtype), self.cast(b, dtype), width=max(a.width, b.width))

    def add(self, a: Value, b: Value | float) -> Value:
        """Return a + b."""
        return self.binary("Add", a, b)

    def mul(self, a: Value, b: Value | float) -> Value:
        """Return a * b; a itself for 1."""
        return a if not isinstance(b, Value) and b == 1 else self.binary("Mul", a, b)

    def div(self, a: Value, b: Value | float) -> Value:
        """Return a / b; a itself for 1."""
        return a if not isinstance(b, Value) and b == 1 else self.binary("Div", a, b)

    def clip(self, x: Value, low: float | None, high: float | None) -> Value:
        """Return x within low and high; None: no bound."""
        bounds = [None if bound is None else self.constant(bound, x.dtype) for bound in (low, high)]
        return self.op("Clip", x, *bounds)

    def ints(self, *numbers: int) -> Value:
        """A vector of int64, such as a shape or axes."""
        return self.constant(numbers, "int64")

    def reshape(self, x: Value, *shape: int) -> Value:
        """Return x in another shape; -1: what is left, 0: as before."""
        return self.op("Reshape", x, self.ints(*shape), width=max(shape[-1], 0))

    def transpose(self, x: Value, *order: int) -> Value:
        """Return x with its axes in another order."""
        return self.op("Transpose", x, perm=order, width=0)

    def mean(self, x: Value) -> Value:
        """The mean over the last axis, which stays with one element."""
        return self.op("ReduceMean", x, self.ints(-1), keepdims=1, width=1)

    def capped(self, x: Value, cap: float | None) -> Value:
        """Return x pressed smoothly into -cap to cap; unchanged without a cap."""
        return x if cap is None else self.mul(self.op("Tanh", self.div(x, cap)), cap)

    def dims(self, x: Value, start: int, end: int) -> Value:
        """The sizes of axes start to end (exclusive) of x, as a vector."""
        return self.op("Shape", x, dtype="int64", width=end - start, start=start, end=end)

    def slice(self, x: Value, axis: int, start: int, end: int) -> Value:
        """Elements start to end (exclusive) of an axis."""
        wide = end - start if axis == -1 and start >= 0 and 0 <= end < 1 << 31 else x.width
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis), width=wide)

    def concat(self, axis: int, *parts: Value) -> Value:
        """The parts one behind another."""
        return self.op("Concat", *parts, axis=axis, width=sum(part.width for part in parts) if axis == -1 else None)
