"""A product added on the way: the same bytes whatever the memory and the blocks, and the sum rounded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossdock.formats.stored import Extent, SourceFile
from crossdock.model.config import ResolvedConfig
from crossdock.planning.plan import Move, Plan, PlannedExtent, Product, TargetTensor
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.low_rank import Adders
from crossdock.running.reader import Reader


def planned(folder: Path, rows: int, columns: int, rank: int) -> tuple[Plan, np.ndarray]:  # type: ignore[type-arg]
    """A plan of one tensor with a product, and its exact sum."""
    rng = np.random.default_rng(rows)
    shapes = ((rows, columns), (rows, rank), (columns, rank))
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    (folder / "data").write_bytes(b"".join(part.tobytes() for part in parts))
    at, extents, moves = 0, [], []
    for number, part in enumerate(parts):
        extents.append(PlannedExtent(Extent(0, at, part.nbytes, (0, 0), part.shape), str(number), "", "float32"))
        moves.append((Move(number, 0, 0, (part.size,), (1,), (1,)),))
        at += part.nbytes
    product = Product(rank, rows, columns, moves[1], moves[2])
    tensor = TargetTensor("t", 0, 0, parts[0].nbytes, (rows, columns), "float32", moves[0], products=(product,))
    files = (SourceFile.of(folder / "data"),)
    described = ResolvedConfig(None, {})  # type: ignore[arg-type]
    plan = Plan("", folder, "", True, files, tuple(extents), (), (tensor,), described)
    base, left, right = (part.astype(np.float64) for part in parts)
    return plan, base + left @ right.T


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(1, 5000, 3), (333, 257, 4), (20, 2500, 33), (5000, 3, 1), (7, 7, 99)]
)
def test_blocks_of_any_size(rows: int, columns: int, rank: int, tmp_path: Path) -> None:
    plan, exact = planned(tmp_path, rows, columns, rank)
    found = set()
    for memory, most in ((1 << 19, None), (1 << 24, None), (1 << 20, 1000), (1 << 20, 77)):
        with Reader(plan) as reader:
            out = b"".join(
                bytes(b.encoded) for b in blocks(plan, plan.tensors[0], reader, WorkerBuffers(memory), most=most)
            )
        found.add(out)
    (data,) = found
    got = np.frombuffer(data, np.float32).reshape(rows, columns)
    np.testing.assert_allclose(got, exact, rtol=2e-7, atol=1e-6 * rank)


def test_tiles_stay_small(tmp_path: Path) -> None:
    """Buffers of a product do not grow with the tensor, and little with the rank."""
    import tracemalloc

    plan, _ = planned(tmp_path, 16, 60_000, 16)
    tensor = plan.tensors[0]
    values = np.zeros(80_000, np.float32)
    with Reader(plan) as reader:
        adder = Adders(plan, tensor, reader, 256 << 10)
        tracemalloc.start()
        adder(values, 50_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 512 << 10
    assert np.count_nonzero(values) > 79_000
