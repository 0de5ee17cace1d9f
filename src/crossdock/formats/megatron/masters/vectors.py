"""Flat float32 vectors in pickled states of Megatron's distributed optimizer, wherever they are nested."""

from __future__ import annotations

from collections.abc import Iterator

from crossdock.formats.stored import Extent
from crossdock.unpickle import Global, TensorRef, dtype_of

DEEPEST = 8  # dicts and lists inside each other
MOST = 100_000  # values looked at


def flat_vectors(root: object, file: int) -> Iterator[tuple[Extent, ...]]:
    """The `param` vectors in `root`, which lies in file number `file`: of weights that are not float32 themselves.

    Their dicts are under a pair of dtypes, of weights and of gradients (`get_parameter_state_dp_zero`).
    """
    stack: list[tuple[int, object]] = [(0, root)]
    for _ in range(MOST):
        if not stack:
            return
        depth, value = stack.pop()
        if depth > DEEPEST:
            continue
        if isinstance(value, dict):
            vector = value.get("param")
            if type(vector) is TensorRef:
                if vector.dtype == "float32" and len(vector.shape) == 1 and vector.contiguous and vector.elements:
                    yield (Extent(file, vector.offset, vector.nbytes, (0,), vector.shape),)
                continue
            stack += [(depth + 1, inner) for key, inner in value.items() if not _is_float32(key)]
        elif isinstance(value, list | tuple):
            stack += [(depth + 1, inner) for inner in value]


def _is_float32(key: object) -> bool:
    return isinstance(key, tuple) and bool(key) and isinstance(key[0], Global) and dtype_of(key[0]) == "float32"
