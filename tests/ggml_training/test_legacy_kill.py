"""kill -9 while a training checkpoint or a merged model is written: the same command again gives the same bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import crossdock
from support.killed_runs import ALL, killed_at


@pytest.mark.parametrize(
    ("name", "to", "base", "warning"),
    [
        ("ggcp/a3-adam-ff44.ggcp", "gguf-checkpoint", None, "are rearranged"),
        ("ggcp/v1-lbfgs.ggcp", "gguf-checkpoint", None, ""),
        ("ggcl/l1-adam.ggcl", "gguf", "support/base96.gguf", ""),
    ],
)
def test_resumed_output_is_byte_identical(
    name: str, to: str, base: str | None, warning: str, legacy: Path, tmp_path: Path
) -> None:
    source, options = legacy / name, {"base": str(legacy / base)} if base else {}
    whole = tmp_path / "whole.gguf"
    total = killed_at(0, ALL, source, whole, to, open=options)
    expected, resumed = whole.read_bytes(), 0

    def again(output: Path) -> Any:
        plan = crossdock.plan(crossdock.open(source, **options), to)
        assert warning in " ".join(plan.warnings)
        return crossdock.run(plan, output, memory=2 << 20, workers=1)

    assert again(tmp_path / "once.gguf").resumed == 0
    assert (tmp_path / "once.gguf").read_bytes() == expected
    for last in sorted(random.Random(5).sample(range(1, total), 10)):
        output = tmp_path / f"killed-{last}.gguf"
        killed_at(last, ALL, source, output, to, open=options)
        if not output.exists() or (tmp_path / f"{output.name}.partial").exists():
            resumed += again(output).resumed
        assert output.read_bytes() == expected, f"killed at call {last} of {total}"
        assert not (tmp_path / f"{output.name}.partial").exists()
    assert resumed > 0
