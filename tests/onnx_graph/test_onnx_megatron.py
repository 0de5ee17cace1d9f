"""Real Megatron checkpoints as ONNX graphs: ONNX Runtime computes the logits of the Megatron model itself, and
onnxruntime-genai writes transformers' own text with the real tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pytest
from onnx_sessions import Session

import crossdock
from conftest import CHECKPOINTS, FAMILY_CHECKPOINTS
from crossdock.errors import PlanError
from support.reference_logits import FLOAT32, STORED, Doubled, reference_logits, relative

TOKENIZER = Path(__file__).parents[2] / "examples/tiny-kjv-tokenizer"
# checkpoints of models that no Hugging Face folder holds, or no graph expresses
REFUSED = {
    "gpt-gated-v016-dist-tp2-fp32": "MLP without gate",
    "gptnext-gated-v016-dist-tp2-fp32": "LayerNorm, rope and this MLP",
    "nemotronh-v019-dist-tp2-bf16": "selective scan",
    "qwen3next-v019-dist-tp2-bf16": "delta rule",
}
MORE = tuple(
    sorted(
        file.name.removesuffix(".tar.xz")
        for file in (Path(__file__).parents[1] / "data/megatron").glob("*-*.tar.xz")  # one whole checkpoint each
    )
)


@pytest.mark.parametrize("name", ["tiny-kjv", *CHECKPOINTS, *FAMILY_CHECKPOINTS, *MORE])
def test_onnx_runtime_computes_the_reference_forward_in_float64(
    name: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = crossdock.open(megatron_checkpoint(name))
    if name in REFUSED:
        with pytest.raises(PlanError, match=REFUSED[name]):
            crossdock.plan(source, "onnx")
        return
    tokens = np.random.default_rng(7).integers(0, source.config.vocab_size, 20).tolist()
    expected = reference_logits(megatron_checkpoint(name), np.array(tokens), held=Doubled)[0]
    for ops in ("gqa", "standard"):
        crossdock.run(crossdock.plan(source, "onnx", ops=ops), tmp_path / ops)
        found = Session(tmp_path / ops).calls(tokens, 12, 18, 19, 20)
        assert relative(found, expected) <= STORED.get(name, FLOAT32), ops


def transformers_text(folder: Path, ids: list[int], count: int) -> list[int]:
    """The ids behind `ids` that transformers chooses, greedily."""
    import torch
    import transformers

    models: Any = transformers.AutoModelForCausalLM
    model = models.from_pretrained(folder, dtype=torch.float32).eval()
    found = model.generate(
        torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True
    )
    return found[0, len(ids) :].tolist()


@pytest.mark.parametrize("ops", ["gqa", "standard"])
def test_genai_writes_the_text_of_transformers(ops: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crossdock.export(TOKENIZER.parent / "tiny-kjv", out, "onnx", ops=ops, dtype="float32", tokenizer=str(TOKENIZER))
    model = onnxruntime_genai.Model(str(out))
    tokenizer = onnxruntime_genai.Tokenizer(model)
    ids = tokenizer.encode("In the beginning God created the heaven").tolist()
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(do_sample=False, max_length=len(ids) + 20, min_length=len(ids) + 20)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(np.array([ids], np.int32))
    written: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        written.append(int(generator.get_next_tokens()[0]))
    expected = transformers_text(out, ids, 20)
    assert len(expected) == 20
    assert written == expected
    assert len(tokenizer.decode(np.array(written, np.int32))) > 20
