"""The ONNX folder as a target like any other: weights by reference, shards, types, what is closed, what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_sessions import Session

import crossdock
from conftest import Answer
from crossdock.errors import FormatError, PlanError
from crossdock.formats.onnx.fields import demand_expressible, known_fields
from crossdock.model.config import FIELDS, LAYER_TYPES, ModelConfig

TOKENS = [3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9]
Made = Callable[[str], Path]


def graph_of(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def references(folder: Path) -> dict[str, dict[str, str]]:
    return {
        one.name: {entry.key: entry.value for entry in one.external_data}
        for one in graph_of(folder).graph.initializer
        if one.external_data
    }


def test_the_folder_is_the_hugging_face_export_and_a_graph(hf_model: Made, tmp_path: Path) -> None:
    for to in ("hf", "onnx"):
        crossdock.export(hf_model("llama"), tmp_path / to, to, dtype="float16")
    more = {file.name for file in (tmp_path / "onnx").iterdir()} - {file.name for file in (tmp_path / "hf").iterdir()}
    assert more == {"model.onnx", "genai_config.json"}
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "onnx" / file.name).read_bytes() == file.read_bytes(), file.name
    assert (tmp_path / "onnx/model.onnx").stat().st_size < 100_000


@pytest.mark.parametrize("recipe", ["llama", "mixtral", "qwen3_moe"])
def test_weights_may_lie_in_many_shards(recipe: str, hf_model: Made, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    crossdock.export(hf_model(recipe), whole, "onnx")
    crossdock.export(hf_model(recipe), cut, "onnx", max_shard_size=20_000)
    places = {entry["location"] for entry in references(cut).values()}
    assert places == {file.name for file in cut.glob("*.safetensors")}
    assert len(places) > 3
    assert all("/" not in place for place in places)
    one, other = (Session(folder).calls(TOKENS, len(TOKENS)) for folder in (whole, cut))
    assert np.array_equal(one, other)
    assert crossdock.verify(cut, hf_model(recipe)).ok


def test_float16_is_as_near_as_transformers_own(hf_model: Made, tmp_path: Path) -> None:
    import torch
    import transformers

    models: Any = transformers.AutoModelForCausalLM
    crossdock.export(hf_model("llama"), tmp_path / "f16", "onnx", dtype="f16")
    crossdock.export(hf_model("llama"), tmp_path / "f32", "onnx", dtype="f32")
    with torch.inference_mode():
        exact, half = (
            models.from_pretrained(tmp_path / "f32", dtype=dtype)
            .eval()(torch.tensor([TOKENS]))
            .logits[0]
            .float()
            .numpy()
            for dtype in (torch.float32, torch.float16)
        )
    theirs = np.sqrt(np.mean((half - exact) ** 2))
    for ops in ("gqa", "standard"):
        out = tmp_path / ops
        crossdock.export(hf_model("llama"), out, "onnx", dtype="f16", ops=ops)
        ours = np.sqrt(np.mean((Session(out).calls(TOKENS, 6, 11, 12) - exact) ** 2))
        assert 0 < ours <= 1.2 * theirs, (ops, ours, theirs)


def test_bfloat16_becomes_float32_and_says_so(hf_model: Made) -> None:
    plan = crossdock.plan(crossdock.open(hf_model("llama")), "onnx")
    assert {tensor.dtype for tensor in plan.tensors} == {"float32"}
    assert any("ONNX Runtime has no bfloat16" in warning for warning in plan.warnings)


def test_the_plan_is_the_same_every_time(hf_model: Made) -> None:
    source = crossdock.open(hf_model("mixtral"))
    assert crossdock.plan(source, "onnx").digest == crossdock.plan(source, "onnx").digest
    assert crossdock.plan(source, "onnx").digest != crossdock.plan(source, "onnx", ops="standard").digest


def test_what_genai_needs_stands_in_its_configuration(hf_model: Made, tmp_path: Path) -> None:
    crossdock.export(hf_model("llama"), tmp_path / "out", "onnx")
    said = json.loads((tmp_path / "out/genai_config.json").read_text())
    config = crossdock.open(hf_model("llama")).config
    decoder = said["model"]["decoder"]
    assert said["model"]["vocab_size"] == config.vocab_size
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim,
    )  # fmt: skip
    assert said["search"]["past_present_share_buffer"] is True


# What is closed.


@dataclass(frozen=True)
class WiderConfig(ModelConfig):
    """A configuration with a field that nobody has heard of."""

    attention_of_the_future: bool = False


def test_a_field_that_the_graph_does_not_obey_is_refused(hf_model: Made) -> None:
    config = crossdock.open(hf_model("llama")).config
    wider = WiderConfig(**config.as_dict(), attention_of_the_future=True)
    with pytest.raises(PlanError, match="attention_of_the_future"):
        demand_expressible(wider)
    demand_expressible(replace(wider, attention_of_the_future=False))


def test_every_field_is_named_once_and_exists() -> None:
    known = known_fields()
    named = [*known.obeyed, *known.values, *known.without_effect]
    assert sorted(named) == sorted(set(named))
    assert set(named) <= set(FIELDS)
    assert set(known.lacking) <= {*FIELDS, *LAYER_TYPES, "dynamic"} - known.obeyed - known.without_effect


def test_every_field_that_is_obeyed_is_read_by_the_layers() -> None:
    code = (
        "".join(
            file.read_text()
            for folder in ("formats/onnx/layers", "model/layers")
            for file in (Path(crossdock.__file__).parent / folder).glob("*.py")
        )
        + Path(crossdock.__file__).with_name("model").joinpath("config.py").read_text().split("def layer_type")[1]
    )
    sizes = {
        "num_experts_per_tok", "max_position_embeddings", "moe_intermediate_size", "v_head_dim", "q_lora_rank",
        "num_key_value_heads", "intermediate_size", "num_attention_heads", "num_attention_heads_per_layer",
    }  # fmt: skip
    assert [name for name in {*known_fields().obeyed, *known_fields().values} - sizes if f".{name}" not in code] == []


# What is broken.


def planted(folder: Path, change: Callable[[Any], None]) -> None:
    model = graph_of(folder)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def outside(model: Any) -> None:
    tensor = next(one for one in model.graph.initializer if one.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "../secret.safetensors"


def beyond(model: Any) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "layers.1.attn_q")
    next(entry for entry in tensor.external_data if entry.key == "offset").value = "1"


def foreign(model: Any) -> None:
    model.producer_name = "pytorch"


def unknown(model: Any) -> None:
    node = next(node for node in model.graph.node if node.name == "layers.0/attention/Gemm")
    node.op_type = "ConvInteger"


def dangling(model: Any) -> None:
    node = next(node for node in model.graph.node if node.name == "layers.0/attention/Gemm")
    node.input[0] = "nothing"


BROKEN = {
    outside: ("out of the folder", "node Gather"),
    beyond: ("bytes that are not weights", "node layers.1/attention/Gemm"),
    foreign: ("another program", "node "),
    unknown: ("no graph of crossdock has", "node layers.0/attention/Gemm"),
    dangling: ("nothing gives", "node layers.0/attention/Gemm"),
}


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_graph_is_an_error_that_names_the_node(
    change: Callable[[Any], None], hf_model: Made, tmp_path: Path
) -> None:
    crossdock.export(hf_model("llama"), tmp_path / "out", "onnx")
    planted(tmp_path / "out", change)
    with pytest.raises(FormatError) as error:
        crossdock.open(tmp_path / "out")
    what, node = BROKEN[change]
    assert what in str(error.value)
    assert node in str(error.value)
    assert crossdock.open(tmp_path / "out", format="hf").config.num_hidden_layers


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"\x08\x0b\x12\x09crossdock", b"{}"], ids=["empty", "zeros", "head", "json"]
)
def test_what_is_not_a_graph_is_an_error(content: bytes, hf_model: Made, tmp_path: Path) -> None:
    crossdock.export(hf_model("llama"), tmp_path / "out", "onnx")
    (tmp_path / "out/model.onnx").write_bytes(content)
    with pytest.raises(FormatError):
        crossdock.open(tmp_path / "out")


def rewired(model: Any) -> None:
    """The first layer's keys are made by the second's matrix."""
    node = next(node for node in model.graph.node if node.name == "layers.0/attention/Gemm.1")
    assert node.input[1] == "layers.0.attn_k"
    node.input[1] = "layers.1.attn_k"


def test_verify_names_the_node_that_differs(hf_model: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crossdock.export(hf_model("llama"), out, "onnx")
    planted(out, lambda model: None)  # other bytes may say the same
    assert crossdock.verify(out, hf_model("llama")).ok
    planted(out, rewired)
    report = crossdock.verify(out, hf_model("llama"), logits=",".join(map(str, TOKENS)), logits_engine="onnxruntime")
    assert not report.ok
    assert "node layers.0/attention/Gemm.1" in report.problems[0].where
    assert not report.logits.ok


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime-genai"])
@pytest.mark.parametrize(("recipe", "ops"), [("llama", "gqa"), ("mixtral", "gqa"), ("llama", "standard")])
def test_verify_asks_the_engines(recipe: str, ops: str, engine: str, hf_model: Made, tmp_path: Path) -> None:
    crossdock.export(hf_model(recipe), tmp_path / "out", "onnx", ops=ops)
    report = crossdock.verify(
        tmp_path / "out", hf_model(recipe), logits=",".join(map(str, TOKENS)), logits_engine=engine
    )
    assert report.ok, report.logits
    assert report.logits.tokens == len(TOKENS)


def no_past(model: Any) -> None:
    """The second layer's cache is the first one's."""
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention" and "layers.1" in node.name)
    node.input[3] = "past_key_values.0.key"


def test_a_fault_of_the_cache_is_found_though_the_first_pass_is_right(hf_model: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crossdock.export(hf_model("llama"), out, "onnx")
    planted(out, no_past)
    report = crossdock.verify(out, hf_model("llama"), logits=",".join(map(str, TOKENS)), logits_engine="onnxruntime")
    assert not report.ok
    assert "behind a cache" in report.logits.problems[0].cause


def test_inspect_shows_the_graph(crossdock: Callable[..., Answer], hf_model: Made, tmp_path: Path) -> None:
    crossdock("export", hf_model("llama"), "--to", "onnx", "-o", tmp_path / "out").ok()
    said = crossdock("inspect", tmp_path / "out").ok().stdout
    assert "onnx" in said
    assert "GroupQueryAttention" in said
    assert "opset 23" in said


def test_an_unknown_set_of_operators_is_refused(
    crossdock: Callable[..., Answer], hf_model: Made, tmp_path: Path
) -> None:
    said = crossdock("export", hf_model("llama"), "--to", "onnx", "--ops", "magic", "-o", tmp_path / "out")
    assert said.code == 2
    assert "gqa or standard" in said.stderr
