"""What the converters of TensorRT-LLM and Megatron wrote, byte for byte; and where they are wrong, what is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from crossdock import Checkpoint, delivery
from oracles.trtllm_files import rank_files, what_the_loader_reads

HF = (
    "hf_falcon_new_tp2", "hf_gemma_tp2", "hf_gpt2_tp2", "hf_llama_kvdup_tp4_fp16", "hf_llama_oddvocab_tp2_upe",
    "hf_llama_tp2_pp2", "hf_mixtral_tp2", "hf_qwen2_tp2", "hf_starcoder_tp2",
)  # fmt: skip

# to TensorRT-LLM every gelu is the tanh approximation
ALIKE = ("hidden_act",)
BF16 = ml_dtypes.bfloat16


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


# what Megatron's exporter wrote, from the state dict that it was given
RIGHT = (
    "gpt_untied_fp32_tp2_pp2", "llama_gqa_tp2_pp2", "llama_local_spec_names_tp2", "llama_pp_uneven_L5_pp2_tensorsplit",
)  # fmt: skip


def from_megatron(folder: Path, out: Path, **more: Any) -> Checkpoint:
    """The case's state dict, exported with the case's settings as its exporter took them."""
    said = json.loads((folder / "case.json").read_text())
    config = out.with_name("config.json")
    config.write_text(json.dumps(said["transformer_config"] | said["helper"]))
    source = more.pop("source", folder / "megatron_state_dict.safetensors")
    checkpoint = delivery.open(source, config=config, family=said["model_type"])
    plan = delivery.plan(
        checkpoint, "trtllm", dtype=said["dtype"], tp=said["inference_tp_size"], pp=said["inference_pp_size"],
        use_parallel_embedding=said["use_parallel_embedding"], **more,
    )  # fmt: skip
    delivery.run(plan, out, workers=1)
    assert delivery.verify(out, checkpoint, workers=1).ok
    return checkpoint


def unequal(ours: Path, theirs: Path) -> set[str]:
    """Names of tensors that differ in any rank; the files and the names in them must be the same."""
    got, want = rank_files(ours), rank_files(theirs)
    assert {file: tensors.keys() for file, tensors in got.items()} == {file: t.keys() for file, t in want.items()}
    return {name for file, tensors in want.items() for name in tensors if got[file][name] != tensors[name]}


@pytest.mark.parametrize("name", RIGHT)
def test_state_dicts_become_what_megatrons_exporter_makes_of_them(
    name: str, trtllm_case: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = trtllm_case(name)
    from_megatron(folder, tmp_path / "out")
    assert rank_files(tmp_path / "out") == rank_files(folder)
    assert what_the_loader_reads(tmp_path / "out") == what_the_loader_reads(folder)


def test_the_vocabulary_is_the_models_not_the_padded_one(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    """Megatron's exporter writes the padded vocab_size; TensorRT-LLM pads itself, and refuses the untied case."""
    folder = trtllm_case("gpt_tied_oddvocab_tp2_upe")
    from_megatron(folder, tmp_path / "tied")
    assert rank_files(tmp_path / "tied") == rank_files(folder)
    assert what_the_loader_reads(tmp_path / "tied") == what_the_loader_reads(folder) | {"vocab_size": 101}
    folder = trtllm_case("llama_oddvocab_tp2")
    from_megatron(folder, tmp_path / "untied")
    assert unequal(tmp_path / "untied", folder) == {"lm_head.weight"}
    heads = [tensors["lm_head.weight"] for tensors in rank_files(tmp_path / "untied").values()]
    theirs = [tensors["lm_head.weight"] for tensors in rank_files(folder).values()]
    assert [shape for _, shape, _ in heads] == [(50, 64), (50, 64)]
    assert heads[0] == theirs[0]
    assert heads[1][2] == theirs[1][2] + bytes(2 * 64)  # 49 rows, and one of zeros
    assert what_the_loader_reads(tmp_path / "untied")["vocab_size"] == 99


def test_a_gated_gpt_says_so(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    """With silu TensorRT-LLM builds an MLP without gate, and drops mlp.gate.* with a warning."""
    folder = trtllm_case("gpt_swiglu_tp2")
    from_megatron(folder, tmp_path / "out")
    assert rank_files(tmp_path / "out") == rank_files(folder)
    assert what_the_loader_reads(tmp_path / "out") == what_the_loader_reads(folder) | {"hidden_act": "swiglu"}


def test_the_router_is_float32(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    folder = trtllm_case("mixtral_tp2_pp1")
    from_megatron(folder, tmp_path / "out")
    assert unequal(tmp_path / "out", folder) == {f"transformer.layers.{i}.mlp.router.weight" for i in (0, 1)}
    for file, tensors in rank_files(folder).items():
        for name in (name for name in tensors if name.endswith("router.weight")):
            dtype, shape, data = rank_files(tmp_path / "out")[file][name]
            assert (dtype, shape) == ("F32", tensors[name][1])
            assert np.array_equal(np.frombuffer(data, np.float32), np.frombuffer(tensors[name][2], BF16))
    assert what_the_loader_reads(tmp_path / "out") == what_the_loader_reads(folder)


def test_one_is_added_to_the_norms_of_gemma_in_float32(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    """Megatron's exporter adds nothing to them."""
    folder = trtllm_case("gemma_tp1")
    from_megatron(folder, tmp_path / "out")
    differ = unequal(tmp_path / "out", folder)
    assert differ
    assert all("norm" in name or "ln_f" in name for name in differ)
    stored = load_file(folder / "megatron_state_dict.safetensors")
    last = next(array for name, array in stored.items() if "final_layernorm.weight" in name)
    _, _, data = rank_files(tmp_path / "out")["rank0.safetensors"]["transformer.ln_f.weight"]
    assert np.array_equal(np.frombuffer(data, BF16), (last.astype(np.float32) + 1).astype(BF16))


def test_one_is_added_to_zero_centred_layernorms_as_megatron_does(
    trtllm_case: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the dtype that they are stored in, bfloat16, before the cast to float16: 1.1016 + 1 is 2.0938."""
    folder = trtllm_case("gptnext_ln1p_rope_fp16_tp2")
    from_megatron(folder, tmp_path / "out")
    assert rank_files(tmp_path / "out") == rank_files(folder)
    assert what_the_loader_reads(tmp_path / "out") == what_the_loader_reads(folder)
    stored = load_file(folder / "megatron_state_dict.safetensors")
    last = next(array for name, array in stored.items() if "final_layernorm.weight" in name)
    _, _, data = rank_files(tmp_path / "out")["rank0.safetensors"]["transformer.ln_f.weight"]
    assert np.array_equal(np.frombuffer(data, np.float16), (last + BF16(1)).astype(np.float16))
