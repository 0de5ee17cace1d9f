"""FP8 by the scales of training: `_extra_state` in all of its forms, stale scales, states that cannot be read."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_references import from_megatron

from crossdock import delivery
from crossdock.errors import PlanError
from oracles.trtllm_files import rank_files, what_the_loader_reads
from support import hf_models

CASE = "llama_fp8_tp2"
STALE = "decoder.layers.1.mlp.linear_fc2"


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch crossdock-evil-fp8",)


def saved(state: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def as_bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


FORMS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "BytesIO": lambda state: io.BytesIO(saved(state)),
    "uint8 of torch.save": lambda state: as_bytes(saved(state)),
    "uint8 of pickle": lambda state: as_bytes(pickle.dumps(state)),
    "uint8, scale_fwd alone": lambda state: as_bytes(pickle.dumps({"scale_fwd": state["scale_fwd"]})),
}


def state_dict(folder: Path, file: Path, form: Callable[[dict[str, torch.Tensor]], Any], **changed: Any) -> Path:
    """The case's state dict with its scales in it, as a file; `changed`: module -> another extra state."""
    tensors: dict[str, Any] = load_file(folder / "megatron_state_dict.safetensors")
    for module, scales in json.loads((folder / "fp8_extra_state.json").read_text()).items():
        state = {name: torch.tensor(numbers) for name, numbers in scales.items()}
        tensors[f"{module}._extra_state"] = changed.get(module, form)(state)
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_and_scales_are_those_of_megatrons_exporter(
    form: str, suffix: str, trtllm_case: Callable[[str], Path], tmp_path: Path
) -> None:
    if suffix == ".safetensors" and form == "BytesIO":
        form = "uint8 of torch.save"  # safetensors holds tensors only
    folder = trtllm_case(CASE)
    file = state_dict(folder, tmp_path / f"model{suffix}", FORMS[form])
    from_megatron(folder, tmp_path / "out", source=file, quantize="fp8", fp8_kv_cache=True)
    assert rank_files(tmp_path / "out") == rank_files(folder)
    assert what_the_loader_reads(tmp_path / "out") == what_the_loader_reads(folder)
    from_megatron(folder, tmp_path / "plain", source=file)
    report = delivery.diff(tmp_path / "plain", tmp_path / "out")
    assert report.same
    assert {diff.cast for diff in report.tensors} == {"", "bfloat16 → float8_e4m3fn × scales"}


def test_a_stale_scale_cuts_values_off_and_says_so(trtllm_case: Callable[[str], Path], tmp_path: Path) -> None:
    def stale(state: dict[str, torch.Tensor]) -> Any:
        return as_bytes(pickle.dumps({"scale_inv_fwd": state["scale_inv_fwd"] / 4}))

    folder = trtllm_case(CASE)
    file = state_dict(folder, tmp_path / "model.pt", FORMS["BytesIO"], **{STALE: stale})
    whole = load_file(folder / "megatron_state_dict.safetensors")[f"{STALE}.weight"].float().numpy()
    scale = np.float32(json.loads((folder / "fp8_extra_state.json").read_text())[STALE]["scale_inv_fwd"][1]) / 4
    config = tmp_path / "config.json"
    said = json.loads((folder / "case.json").read_text())
    config.write_text(json.dumps(said["transformer_config"] | said["helper"]))
    plan = delivery.plan(delivery.open(file, config=config, family="llama"), "trtllm", tp=2, quantize="fp8")
    report = delivery.run(plan, tmp_path / "out", workers=1)
    beyond = int((np.abs(whole / scale) >= 464).sum())  # what rounds to more than 448
    assert any(f"{beyond:,} values were cut" in warning for warning in report.warnings)
    for rank, got in enumerate(rank_files(tmp_path / "out").values()):
        dtype, shape, data = got["transformer.layers.1.mlp.proj.weight"]
        assert dtype == "F8_E4M3"
        values = np.frombuffer(data, ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(shape)
        want = np.clip(np.split(whole, 2, 1)[rank] / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(values, want.astype(np.float32))


@pytest.mark.parametrize(
    "broken",
    [lambda state: as_bytes(b"PK not a zip"), lambda state: as_bytes(pickle.dumps(Evil())),
     lambda state: as_bytes(saved({"scale_inv_fwd": [1, 2]})), lambda state: torch.empty(0, dtype=torch.uint8),
     lambda state: as_bytes(pickle.dumps({"scale_inv_fwd": torch.tensor([0.0, float("nan")])})),
     lambda state: as_bytes(pickle.dumps(state)[:-40]), lambda state: torch.zeros(3)],
)  # fmt: skip
def test_a_state_that_cannot_be_read_harms_only_fp8(
    broken: Callable[[Any], Any], trtllm_case: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = trtllm_case(CASE)
    file = state_dict(folder, tmp_path / "model.pt", FORMS["uint8 of pickle"], **{STALE: broken})
    from_megatron(folder, tmp_path / "plain", source=file)
    with pytest.raises(PlanError, match="fp8 training scales"):
        from_megatron(folder, tmp_path / "out", source=file, quantize="fp8")
    assert not Path("crossdock-evil-fp8").exists()


def test_without_scales_there_is_no_fp8(tmp_path: Path) -> None:
    checkpoint = delivery.open(hf_models.make_hf("llama", tmp_path / "hf"))
    with pytest.raises(PlanError, match="fp8 training scales") as caught:
        delivery.plan(checkpoint, "trtllm", quantize="fp8")
    (problem,) = caught.value.problems  # once, not once a tensor
    assert problem.where == "transformer.layers.0.attention.qkv.weight (and 14 more tensors)"
