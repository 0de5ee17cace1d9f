"""Values that transformers keeps in float32 stay so whatever --dtype says; encodings that are not decoded are named."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import crossdock
from crossdock.errors import FormatError
from support.hf_models import make_hf


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("recipe", ["deepseek_v3"])
def test_what_transformers_keeps_in_float32(tmp_path: Path, recipe: str, dtype: str) -> None:
    """The router and its bias: what transformers itself holds in float32 after loading in another dtype."""
    source = make_hf(recipe, tmp_path / "m", dtype="float32")
    crossdock.run(crossdock.plan(crossdock.open(source), "hf", dtype=dtype), tmp_path / "out")
    wanted = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=wanted)
    kept = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    written, truth = load_file(tmp_path / "out" / "model.safetensors"), load_file(source / "model.safetensors")
    assert kept
    assert {name for name, tensor in written.items() if tensor.dtype == torch.float32} == kept
    assert all(torch.equal(written[name], truth[name]) for name in kept)


@pytest.mark.parametrize("kind", ["IQ4_NL", "IQ4_XS", "TQ2_0", "MXFP4"])
def test_a_type_that_is_not_decoded_is_named(tmp_path: Path, kind: str) -> None:
    source = make_hf("llama", tmp_path / "m", dtype="float32", vocab_size=256, hidden_size=256, head_dim=32)
    crossdock.run(crossdock.plan(crossdock.open(source), "gguf"), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    writer = gguf.GGUFWriter(str(tmp_path / "q.gguf"), "llama")
    quantized = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantized]
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=of_items)
    for tensor in reader.tensors:
        if tensor.name == "blk.1.ffn_up.weight":
            rows, width = tensor.data.shape
            writer.add_tensor(tensor.name, np.zeros((rows, width // block * size), np.uint8), raw_dtype=quantized)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = crossdock.open(tmp_path / "q.gguf")
    for target in ("gguf", "hf"):
        with pytest.raises(FormatError, match=f"stored as {kind}, which crossdock cannot decode") as caught:
            crossdock.plan(checkpoint, target)
        assert caught.value.problems[0].got == f"{kind}: blk.1.ffn_up.weight"
    with pytest.raises(FormatError, match="cannot decode"):
        crossdock.diff(checkpoint, source)


def test_parts_of_a_gguf_model(tmp_path: Path) -> None:
    """Any part gives the vocabulary of the first; parts that were joined are named."""
    source = make_hf("llama", tmp_path / "m", dtype="float32")
    crossdock.run(crossdock.plan(crossdock.open(source), "gguf"), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    names = [tensor.name for tensor in reader.tensors]
    paths = [tmp_path / f"p-0000{n + 1}-of-00002.gguf" for n in range(2)]
    for number, (path, part) in enumerate(zip(paths, (names[:5], names[5:]), strict=True)):
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(names))
        for key, field in reader.fields.items():
            if number == 0 and not key.startswith("GGUF.") and key != "general.architecture":
                of_items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=of_items)
        if number == 0:
            writer.add_array("tokenizer.ggml.tokens", ["a"])
        for tensor in reader.tensors:
            if tensor.name in part:
                writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert [crossdock.open(path).source.companion_files for path in paths] == [(paths[0],)] * 2
    (tmp_path / "joined.gguf").write_bytes(b"".join(path.read_bytes() for path in paths))
    with pytest.raises(FormatError, match="its name does not say which") as caught:
        crossdock.open(tmp_path / "joined.gguf")
    assert "joined" in caught.value.problems[0].cause
