"""Every recorded family as an ONNX graph: ONNX Runtime computes transformers' own logits, however it is asked; what no
operator expresses is refused by the name of the field."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_sessions import every_way

import crossdock
from crossdock.errors import PlanError

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
from family_cases import case, names
from family_checks import FORWARD, FORWARD_OF

NOT_YET = (Path(__file__).parents[1] / "families/not_yet.txt").read_text().split()
STATE_SPACE = "a selective scan"
DELTA = "the delta rule"
INDEXER = "by an indexer"
REFUSED = (
    dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h"), STATE_SPACE)
    | dict.fromkeys(("falcon_mamba",), STATE_SPACE)
    | dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"), DELTA)
    | dict.fromkeys(("kimi_linear", "bailing_hybrid"), DELTA)
    | dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "hy_v4", "dots3_note_text"), INDEXER)
    | {"gemma3n_text": "copies of the residual stream"}
)
CASES = [name for name in names() if name not in NOT_YET]


def refusal(name: str) -> str | None:
    """Words of the reason; a case is like the one that its name begins with."""
    return REFUSED.get(name) or REFUSED.get(name.rsplit("-", 1)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    base = tmp_path_factory.mktemp("families")
    return lambda name: base / name if (base / name).exists() else case(name).write(base / name)


@pytest.mark.parametrize("ops", ["gqa", "standard"])
@pytest.mark.parametrize("name", [name for name in CASES if refusal(name) is None])
def test_onnx_runtime_computes_the_logits_of_transformers(
    name: str, ops: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    crossdock.export(folder(name), out, "onnx", ops=ops)
    assert crossdock.open(out).source.format == "onnx"
    onnx.checker.check_model(out / "model.onnx", full_check=ops == "gqa")
    model = case(name)
    limit = max(FORWARD_OF.get(model.model_type, 0.0), FORWARD) * float(np.abs(model.logits).max())
    for way, (first, logits) in every_way(out, model.tokens[0].tolist(), ops).items():
        difference = np.abs(logits - model.logits[0, first : first + len(logits)]).max()
        assert difference <= limit, f"{way}: {difference:.3g}, more than {limit:.3g}"


@pytest.mark.parametrize("name", [name for name in CASES if refusal(name)])
def test_what_no_operator_expresses_is_refused(name: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(PlanError) as error:
        crossdock.plan(crossdock.open(folder(name)), "onnx")
    assert any(refusal(name) in problem.cause for problem in error.value.problems)
    assert all(problem.where and problem.cause for problem in error.value.problems)
