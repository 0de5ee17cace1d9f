"""longrope in GGUF: a divisor of each frequency, in two tensors, against transformers and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import family_checks as checks
import numpy as np
import pytest
from family_cases import case, write_folder

from crossdock import delivery
from oracles.files import read_gguf
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits

LISTS = {"long_factor": [1.0, 2.5, 4.0, 8.0], "short_factor": [1.1, 1.5, 2.0, 3.0]}


def phi3(folder: Path, context: int, partial: float, **rope: Any) -> Path:
    """The recorded Phi-3 with longrope, trained on texts of `context` tokens; those of the case have 24."""
    recorded = case("phi3")
    pairs = int(4 * partial)
    parameters = {"rope_type": "longrope", "rope_theta": 20000.0, "partial_rotary_factor": partial, **rope}
    parameters |= {name: values[:pairs] for name, values in LISTS.items()}
    config = {**recorded.config, "original_max_position_embeddings": context, "rope_parameters": parameters}
    return write_folder(folder, config, recorded.state())


@pytest.mark.parametrize(
    ("context", "partial", "rope"),
    [(12, 1.0, {}), (12, 0.5, {}), (12, 1.0, {"attention_factor": 1.5})],
    ids=["whole heads", "half heads", "a magnitude of its own"],
)
def test_llama_cpp_and_transformers_compute_the_same_behind_the_context_of_training(
    context: int, partial: float, rope: dict[str, float], tmp_path: Path
) -> None:
    tokens = case("phi3").tokens
    source = phi3(tmp_path / "hf", context, partial, **rope)
    expected = transformers_logits(source, tokens)
    out = checks.export(source, tmp_path / "m.gguf", "gguf", dtype="float32")
    assert np.abs(llama_logits(out, tokens) - expected).max() <= 1e-4
    back = checks.export(out, tmp_path / "back", "hf")
    assert checks.distance(transformers_logits(back, tokens), expected) <= 1e-6
    found = json.loads((back / "config.json").read_text())
    assert found["rope_parameters"]["long_factor"] == LISTS["long_factor"][: int(4 * partial)]
    assert found["original_max_position_embeddings"] == context


def test_the_tensors_are_the_lists_and_the_plan_says_when_they_are_used(tmp_path: Path) -> None:
    source = phi3(tmp_path / "hf", 64, 1.0)
    plan = delivery.plan(delivery.open(source), "gguf")
    assert any("llama.cpp chooses the long or the short factors" in one for one in plan.warnings)
    tensors = read_gguf(checks.export(source, tmp_path / "m.gguf", "gguf")).tensors
    for name, values in LISTS.items():
        stored = tensors[f"rope_factors_{name.removesuffix('_factor')}.weight"]
        assert stored.type == "F32"
        np.testing.assert_array_equal(np.frombuffer(stored.raw, np.float32), np.float32(values))
