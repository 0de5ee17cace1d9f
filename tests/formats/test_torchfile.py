"""torch.save files read without torch, against torch.load: every byte of every tensor."""

from __future__ import annotations

import argparse
import collections
import io
import os
import tarfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from crossdock import torchfile, unpickle
from crossdock.errors import FormatError, NotACheckpointError, UnsafePickleError
from crossdock.unpickle import TensorRef

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
FORMS = pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bytes as `dtype`."""
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def values(file: Path, ref: TensorRef) -> bytes:
    """The tensor's elements in C order, gathered one by one from the file."""
    raw = file.read_bytes()
    starts = [0]
    for size, stride in zip(ref.shape, ref.strides, strict=True):
        starts = [start + index * stride for start in starts for index in range(size)]
    return b"".join(
        raw[ref.offset + start * ref.itemsize : ref.offset + (start + 1) * ref.itemsize] for start in starts
    )


def expected(value: torch.Tensor) -> bytes:
    return bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def save(value: object, file: Path, modern: bool = True, **options: Any) -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=modern, **options)
    return file


def tensors(file: Path) -> dict[str, TensorRef]:
    return dict(torchfile.state_tensors(torchfile.open_torch(file).root))


@FORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, modern: bool, tmp_path: Path) -> None:
    value = tensor(dtype, 3, 5)
    file = save({"a": value, "b": tensor(dtype, 2)}, tmp_path / "a.pt", modern)
    ref = tensors(file)["a"]
    assert ref.dtype == str(dtype).removeprefix("torch.")
    assert (ref.shape, ref.strides, ref.nbytes, ref.contiguous) == ((3, 5), (5, 1), value.nbytes, True)
    assert values(file, ref) == expected(value)


@FORMS
def test_views_and_shared_storages(modern: bool, tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    saved = {
        "whole": whole,
        "rows": whole[2:4],
        "columns": whole[:, 3:5],
        "transposed": whole.t(),
        "last": whole[5, 9],
        "expanded": torch.arange(3.0)[:, None].expand(3, 4),
        "empty": whole[:0],
        "tied": whole,
    }
    file = save(saved, tmp_path / "a.pt", modern)
    refs = tensors(file)
    for name, value in torch.load(file).items():
        assert refs[name].shape == tuple(value.shape)
        assert refs[name].strides == tuple(value.stride())
        assert refs[name].contiguous == value.is_contiguous(), name
        assert values(file, refs[name]) == expected(value), name
    assert refs["whole"] == refs["tied"]
    assert refs["rows"].storage == refs["whole"].storage
    assert refs["rows"].offset == refs["whole"].offset + 80


@FORMS
def test_a_training_checkpoint(modern: bool, tmp_path: Path) -> None:
    """Module, optimizer, parameters, args: names and values as torch sees them."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    saved = {
        "model": module.state_dict(),
        "parameters": dict(module.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(params_dtype=torch.bfloat16, hidden_size=4, device=torch.device("cpu")),
        "rng": [{"torch": torch.get_rng_state(), "python": (3, tuple(range(625)), None)}],
        "size": torch.Size([1, 2]),
    }
    file = save(saved, tmp_path / "a.pt", modern)
    root = torchfile.open_torch(file).root
    assert isinstance(root, dict)
    assert unpickle.attributes(root["model"])["_metadata"]
    args = unpickle.attributes(root["args"])
    assert args["hidden_size"] == 4
    assert unpickle.dtype_of(args["params_dtype"]) == "bfloat16"
    assert root["size"] == (1, 2)
    assert root["rng"][0]["torch"].dtype == "uint8"
    refs = tensors(file)
    for name, value in module.state_dict().items():
        assert values(file, refs[f"model.{name}"]) == expected(value)
        assert values(file, refs[f"parameters.{name}"]) == expected(value)
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert values(file, refs["optimizer.state.0.exp_avg"]) == expected(moment)
    assert torchfile.open_torch(file).form == ("zip" if modern else "legacy")


def test_tensors_with_python_attributes(tmp_path: Path) -> None:
    """torch writes these through `_rebuild_from_type_v2` and `_rebuild_parameter_with_state`."""
    plain, parameter = torch.arange(4.0), torch.nn.Parameter(torch.arange(5.0))
    plain.partition_dim = 0  # type: ignore[attr-defined]
    parameter.partition_dim = 1  # type: ignore[attr-defined]
    file = save({"plain": plain, "parameter": parameter}, tmp_path / "a.pt")
    refs = tensors(file)
    assert values(file, refs["plain"]) == expected(plain)
    assert values(file, refs["parameter"]) == expected(parameter)


def test_protocol_4_and_state_dict_names(tmp_path: Path) -> None:
    nested = collections.OrderedDict(model={"layers": {0: {"w": torch.ones(2)}, "1": {"w": torch.ones(3)}}})
    file = save(nested, tmp_path / "a.pt", pickle_protocol=4)
    assert list(tensors(file)) == ["model.layers.0.w", "model.layers.1.w"]
    root = torchfile.open_torch(file).root
    assert [name for name, _ in torchfile.state_tensors(root, "p", keep=lambda name: "1" in name)] == [
        "p.model.layers.1.w"
    ]


def test_odd_tensors_are_refused_only_when_asked_for(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but files with such tensors exist
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    saved = {
        "dense": torch.ones(2),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": quantized,
    }
    file = save(saved, tmp_path / "a.pt")
    root = torchfile.open_torch(file).root
    found = dict(torchfile.state_tensors(root, keep=lambda name: name == "dense"))
    assert list(found) == ["dense"]
    with pytest.raises(FormatError, match="'sparse' is a tensor without plain values"):
        list(torchfile.state_tensors(root))
    with pytest.raises(FormatError, match="'quantized'"):
        list(torchfile.state_tensors(root, keep=lambda name: name == "quantized"))


def test_blobs_inside_a_file(tmp_path: Path) -> None:
    """As in `.distcp`: archives one after another at odd offsets."""
    first, second, third = tensor(torch.bfloat16, 7, 3), tensor(torch.float32, 4), [{"iteration": 3}]
    file = tmp_path / "blobs"
    spans = []
    with file.open("wb") as out:
        out.write(b"odd")
        for value in (first, second, third):
            start = out.tell()
            buffer = io.BytesIO()
            torch.save(value, buffer)
            out.write(buffer.getvalue())
            spans.append((start, out.tell() - start))
    fd = os.open(file, os.O_RDONLY)
    try:
        for value, span in ((first, spans[0]), (second, spans[1])):
            assert values(file, torchfile.locate_single(fd, *span, "blobs")) == expected(value)
        assert torchfile.read_object(fd, *spans[2], "blobs") == third
        with pytest.raises(FormatError, match=r"holds a value of type list, not a tensor"):
            torchfile.locate_single(fd, *spans[2], "blobs")
        with pytest.raises(FormatError):
            torchfile.locate_single(fd, spans[0][0], spans[0][1] - 1, "blobs")
        with pytest.raises(FormatError, match="outside the file"):
            torchfile.open_torch(fd, 10, 1 << 40, where="blobs")
        start = time.process_time()
        for _ in range(200):
            torchfile.locate_single(fd, *spans[0], "blobs")
        assert (time.process_time() - start) / 200 < 600e-6  # 60 µs here
    finally:
        os.close(fd)


def test_only_the_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save({"a": torch.zeros(1 << 20), "b": torch.zeros(1 << 20)}, tmp_path / "a.pt")
    count = 0
    pread = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        nonlocal count
        data = pread(fd, length, offset)
        count += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    assert len(tensors(file)) == 2
    assert 0 < count < 16384


def test_zip64_with_many_storages(tmp_path: Path) -> None:
    """More than 65,535 entries: counts that fit only into the zip64 record."""
    saved = {str(n): torch.tensor([n]) for n in range(70_000)}
    file = save(saved, tmp_path / "a.pt")
    refs = tensors(file)
    assert len(refs) == 70_000
    raw = file.read_bytes()
    for name in ("0", "65535", "69999"):
        assert raw[refs[name].offset : refs[name].offset + 8] == int(name).to_bytes(8, "little")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"\x80\x02N.")
    with pytest.raises(FormatError, match="TorchScript"):
        torchfile.open_torch(file)


def test_tar_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    with pytest.raises(FormatError, match=r"tar archive of torch 0.1"):
        torchfile.open_torch(file)


def test_big_endian_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "big.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("big/data.pkl", b"\x80\x02N.")
        archive.writestr("big/byteorder", "big")
    with pytest.raises(FormatError, match="big-endian"):
        torchfile.open_torch(file)
    legacy = save([torch.ones(2)], tmp_path / "legacy.pt", modern=False)
    raw = legacy.read_bytes()
    at = raw.index(b"little_endian") + len("little_endian")
    at = raw.index(b"\x88", at)
    legacy.write_bytes(raw[:at] + b"\x89" + raw[at + 1 :])
    with pytest.raises(FormatError, match="big-endian"):
        torchfile.open_torch(legacy)


def test_truncated_legacy_stream(tmp_path: Path) -> None:
    file = save({"a": torch.ones(100)}, tmp_path / "a.pt", modern=False)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated in storage"):
        torchfile.open_torch(file)


def test_a_long_legacy_pickle(tmp_path: Path) -> None:
    """Longer than the first guess of where the pickles end."""
    saved = {"text": "x" * 3_000_000, "a": torch.arange(5)}
    file = save(saved, tmp_path / "a.pt", modern=False)
    assert values(file, tensors(file)["a"]) == expected(saved["a"])  # type: ignore[arg-type]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match="file does not exist"):
        torchfile.open_torch(tmp_path / "none.pt")
    with pytest.raises(NotACheckpointError):
        torchfile.open_torch(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(FormatError, match=r"neither a torch\.save archive"):
        torchfile.open_torch(tmp_path / "text.pt")


def test_a_whole_module_of_somebody_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02ctheir.package\nMine\n)\x81.")
    with pytest.raises(UnsafePickleError, match=r"would call their\.package\.Mine"):
        torchfile.open_torch(file)
