"""What the converters of TensorRT-LLM and Megatron wrote, byte for byte; and where they are wrong, what is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossdock import delivery
from oracles.trtllm_files import rank_files, what_the_loader_reads

HF = (
    "hf_falcon_new_tp2", "hf_gemma_tp2", "hf_gpt2_tp2", "hf_llama_kvdup_tp4_fp16", "hf_llama_oddvocab_tp2_upe",
    "hf_llama_tp2_pp2", "hf_mixtral_tp2", "hf_qwen2_tp2", "hf_starcoder_tp2",
)  # fmt: skip

# to TensorRT-LLM every gelu is the tanh approximation
ALIKE = ("hidden_act",)


def settings(folder: Path) -> dict[str, Any]:
    said = json.loads((folder / "case.json").read_text())
    return {"dtype": said["dtype"], "tp": said["tp"], "pp": said["pp"], **said["extra"]}


@pytest.mark.parametrize("name", HF)
def test_hugging_face_folders_become_what_tensorrt_llm_makes_of_them(
    name: str, trtllm_case: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, out = trtllm_case(name), tmp_path / "out"
    checkpoint = delivery.open(folder / "hf")
    delivery.run(delivery.plan(checkpoint, "trtllm", **settings(folder)), out, workers=1)
    assert rank_files(out) == rank_files(folder)
    assert what_the_loader_reads(out) == what_the_loader_reads(folder)
    assert delivery.verify(out, checkpoint, workers=1).ok


@pytest.mark.parametrize("name", HF)
def test_what_tensorrt_llm_wrote_is_read(name: str, trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing of crossdock is in these files. What TensorRT-LLM unties (it writes the head) is told by --set."""
    folder = trtllm_case(name)
    tied = {"hf_gpt2_tp2", "hf_starcoder_tp2", "hf_falcon_new_tp2"}
    ours = delivery.open(folder / "hf")
    theirs = delivery.open(folder, set={"tie_word_embeddings": "true"} if name in tied else {})
    assert theirs.source.format == "trtllm"
    assert theirs.config.family == ours.config.family
    report = delivery.diff(ours, theirs, workers=1)
    assert all(tensor.same for tensor in report.tensors)
    assert not [field for field in report.fields if not field.label and field.field not in ALIKE]
