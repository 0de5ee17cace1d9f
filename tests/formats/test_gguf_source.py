"""GGUF files as a source, written by gguf-py: keys without their prefix, split files, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossdock.errors import FormatError, NotACheckpointError
from crossdock.formats.gguf.source import open_source, sniff
from crossdock.formats.stored import Source

TENSORS: dict[str, NDArray[Any]] = {
    "token_embd.weight": np.arange(96, dtype=np.float32).reshape(12, 8),
    "blk.0.attn_q.weight": np.arange(64, dtype=np.float16).reshape(8, 8),
    "output_norm.weight": np.ones(8, np.float32),
}


def gguf_file(path: Path, more: Callable[[Any], object] = lambda writer: None, **options: Any) -> Path:
    """A small file by gguf-py; `more` adds keys."""
    import gguf

    writer = gguf.GGUFWriter(path, "qwen3moe", **options)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_name("a name")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(12)])
    writer.add_bos_token_id(1)
    writer.add_string("other.block_count", "of another architecture")
    more(writer)
    for name, values in TENSORS.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_bytes(source: Source) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """name -> (shape, data), read where the extents say."""
    out = {}
    for (_, name), tensor in source.tensors.items():
        (extent,) = tensor.extents
        with source.files[extent.file].path.open("rb") as file:
            file.seek(extent.offset)
            out[name] = tensor.shape, file.read(extent.nbytes)
    return out


EXPECTED = {name: (values.shape, values.tobytes()) for name, values in TENSORS.items()}


def test_keys_and_tensors(tmp_path: Path) -> None:
    source = open_source(gguf_file(tmp_path / "m.gguf"))
    assert source.format == "gguf"
    assert dict(source.metadata) == {
        "general_architecture": "qwen3moe",
        "block_count": 1,
        "attention_head_count": 2,
        "rope_scaling_type": "yarn",
        "tokenizer_ggml_bos_token_id": 1,
    }
    assert source.notes["general.name"] == "a name"
    assert source.notes["tokens"] == "12"
    assert {name: t.dtype for (_, name), t in source.tensors.items()} == {
        "token_embd.weight": "float32",
        "blk.0.attn_q.weight": "float16",
        "output_norm.weight": "float32",
    }
    assert stored_bytes(source) == EXPECTED


@pytest.mark.parametrize("number", [1, 2, 3])
def test_split_files_are_one_model(number: int, tmp_path: Path) -> None:
    gguf_file(tmp_path / "m.gguf", split_max_tensors=1)
    source = open_source(tmp_path / f"m-0000{number}-of-00003.gguf")
    assert len(source.files) == 3
    assert source.metadata["block_count"] == 1
    assert stored_bytes(source) == EXPECTED


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    gguf_file(tmp_path / "m.gguf", split_max_tensors=1)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: this file of a split model is missing"):
        open_source(tmp_path / "m-00001-of-00003.gguf")


def test_adapters_are_refused(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf", lambda writer: writer.add_type("adapter"))
    with pytest.raises(NotACheckpointError, match=r"of type 'adapter'"):
        open_source(file)


def test_a_file_without_architecture_is_refused(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes().replace(b"general.architecture", b"general.architectura"))
    with pytest.raises(FormatError, match="does not name its architecture"):
        open_source(file)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(FormatError, match="beyond the end of the file"):
        open_source(file)


def test_sniff(tmp_path: Path) -> None:
    other = tmp_path / "without-suffix"
    other.write_bytes(gguf_file(tmp_path / "m.gguf").read_bytes())
    text = tmp_path / "m.txt"
    text.write_text("GGML")
    assert sniff(other)
    assert not any(map(sniff, (text, tmp_path, tmp_path / "nothing")))
