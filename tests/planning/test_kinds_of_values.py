"""Values are checked by kind: a text is not true, an unknown activation or position is not a default, a field that is
there is compared.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import crossdock
from crossdock.errors import InputError
from support.hf_models import make_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf("llama", tmp_path_factory.mktemp("m"), dtype="float32")


@pytest.fixture(scope="module")
def ranks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "out"
    crossdock.run(crossdock.plan(crossdock.open(model), "trtllm", dtype="f16"), folder)
    return folder


def changed(source: Path, folder: Path, **keys: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


@pytest.mark.parametrize(
    "keys",
    [
        {"tie_word_embeddings": "False"}, {"attention_bias": "False"}, {"mlp_bias": "no"}, {"hidden_act": "glorp"},
        {"rms_norm_eps": 1e30}, {"rms_norm_eps": "1e-5"}, {"hidden_size": "64"}, {"tie_word_embeddings": [False]},
    ],
    ids=str,
)  # fmt: skip
def test_hugging_face(model: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        crossdock.open(changed(model, tmp_path / "x", **keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"position_embedding_type": "alibi"}, {"position_embedding_type": "learned_absolute"}, {"rotary_pct": 0.5},
        {"quantization": {"quant_algo": "FP8"}}, {"attn_bias": True}, {"mlp_bias": True}, {"hidden_act": "relu"},
        {"hidden_act": "tanh"}, {"max_position_embeddings": 7}, {"norm_epsilon": 1e30}, {"attn_bias": "False"},
    ],
    ids=str,
)  # fmt: skip
def test_tensorrt_llm(ranks: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    """Of a folder that crossdock wrote itself, whose private block must agree with the public keys."""
    assert crossdock.open(ranks).config.num_hidden_layers == 3
    with pytest.raises(InputError):
        crossdock.open(changed(ranks, tmp_path / "x", **keys))


@pytest.mark.parametrize(
    ("key", "value"),
    [("llama.attention.value_length", 4), ("llama.rope.dimension_count", 4),
     ("llama.attention.layer_norm_rms_epsilon", 1e30)],
)  # fmt: skip
def test_gguf(model: Path, tmp_path: Path, key: str, value: Any) -> None:
    """The widths of keys, values and of the part that is rotated."""
    crossdock.run(crossdock.plan(crossdock.open(model), "gguf"), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", key):
            continue
        of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=of_items)
    kind = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32
    writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError):
        crossdock.open(tmp_path / "x.gguf")


@pytest.mark.parametrize("text", ["False", "True", "no"])
def test_megatron_args_as_texts(text: str) -> None:
    """A flag that only decides between two branches: the text 'False' would be true."""
    from crossdock.layout.rules import layout
    from crossdock.model.families import family
    from crossdock.planning.config.kinds import flag_problems

    rules = layout("megatron", family("llama"))
    for key in ("apply_layernorm_1p", "layernorm_zero_centered_gamma", "swiglu", "add_bias_linear"):
        (problem,) = flag_problems(rules, {key: text, "num_layers": 2}, "args")
        assert problem.what == f"{key} is a text, not true or false"
    assert flag_problems(rules, {"apply_layernorm_1p": True, "swiglu": 1, "num_layers": 2}, "args") == []
    (problem,) = flag_problems(rules, {"apply_layernorm_1p": [False]}, "args")
    assert problem.what == "apply_layernorm_1p is a list, not true or false"
