"""Files that crossdock reads, each with the way in which it is read and what must hold of any mutant of it.

A reader returns, or raises CrossdockError. Where a mutant must not pass for the whole file, the reader asserts it.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import sentencepiece
import torch
from damage import Rng, changed_bytes, changed_json, cut_off

import crossdock
import crossdock_powerinfer.gpuidx as gpuidx
from crossdock import torchfile
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.gguf.container import read_header as read_gguf
from crossdock.formats.safetensors import read_header as read_safetensors
from crossdock.io.json import CONFIGURATION, json_object
from crossdock.io.yaml import read_section
from crossdock.running.journal import NAME
from crossdock.scan import scan
from crossdock.tokenizers.reading import read as read_tokenizer
from crossdock_powerinfer.statistics import read_statistics
from support.ggml_training_files import random_file, write

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
CORPUS = ROOT / "tests" / "data" / "tokenizers" / "corpus.txt"
SIZES = {"n_vocab": 24, "n_embd": 16, "n_head": 2, "n_rot": 8, "n_layer": 2, "n_ff": 24}
SMALL = MappingProxyType({"memory": 4 << 20, "workers": 1})

Reader = Callable[[Path, Path], object]  # (the file, the folder in which `make` made everything)


class Stop(Exception):
    """Ends a run in the middle."""


def make(folder: Path) -> None:
    """Everything whose mutants are read, and what they are read beside."""
    crossdock.export(CHECKPOINT, folder / "kjv", "hf", tokenizer=TOKENIZER)
    crossdock.export(CHECKPOINT, folder / "kjv.gguf", "gguf", tokenizer=TOKENIZER)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        shutil.copy(folder / "kjv" / name, folder / name)
    saved = {"model": {"a": torch.ones(2, 3)}, "args": argparse.Namespace(x=1, dtype=torch.bfloat16), "n": 3}
    torch.save(saved, folder / "zip.pt")
    torch.save(saved, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    source = next(CHECKPOINT.glob("iter_*"))
    shutil.copytree(source, folder / "iter")
    shutil.copy(folder / "iter/__0_0.distcp", folder)

    rng = np.random.default_rng(5)
    for kind, version in (("ggcp", "1"), ("ggcl", "1")):
        (folder / f"small.{kind}").write_bytes(write(random_file(rng, kind, version, "adam", **SIZES)))
    crossdock.export(folder / "small.ggcp", folder / "hf", "hf")
    crossdock.export(folder / "hf", folder / "verified", "hf")
    crossdock.export(folder / "hf", folder / "checked", "hf")
    crossdock.export(folder / "hf", folder / "verified.gguf", "gguf")
    crossdock.export(folder / "hf", folder / "trtllm", "trtllm")
    crossdock.export(folder / "small.ggcl", folder / "peft", "peft")
    shutil.copy(folder / "hf/config.json", folder / "said.json")
    interrupted(folder / "hf", folder / "resumed")

    sentencepiece.SentencePieceTrainer.train(
        input=str(CORPUS), model_prefix=str(folder / "pieces"), vocab_size=700, model_type="bpe", byte_fallback=True,
        minloglevel=2,
    )  # fmt: skip
    (folder / "spm").mkdir()
    (folder / "pieces.model").rename(folder / "spm/tokenizer.model")
    buckets = [np.arange(0, 32, 2, dtype=np.int32), np.arange(5, dtype=np.int32)]
    gpuidx.write(folder / "index.gpuidx", gpuidx.of_buckets(buckets, [32, 48], 1 << 20))
    (folder / "activations").mkdir()
    for layer in range(2):
        torch.save(torch.arange(64, dtype=torch.int64), folder / f"activations/activation_{layer}.pt")
    np.save(folder / "logits.npy", np.zeros((1, 4, 24), np.float32))
    np.save(folder / "tokens.npy", np.arange(4))
    (folder / "run_config.yaml").write_text("model:\n  a: [1, 2.5, {b: null}]\n  _target_: x.y\nlist:\n- 'é'\n- true\n")


def interrupted(source: Path, output: Path) -> None:
    """An output that was stopped after a few of its tensors."""
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Stop

    try:
        crossdock.run(crossdock.plan(crossdock.open(source), "hf"), output, progress=stop, **SMALL)
    except Stop:
        return
    raise AssertionError("the run was not stopped")


def resumed(file: Path, folder: Path) -> None:
    """Go on with an unfinished output, one of whose files is a mutant: the whole output, or a refusal."""
    output = folder / "out"
    partial = folder / "out.partial"
    shutil.copytree(folder / "resumed.partial", partial)
    try:
        try:
            crossdock.run(crossdock.plan(crossdock.open(folder / "hf"), "hf"), output, **SMALL)
        finally:
            assert not output.exists() or same(output, folder / "verified"), "another output than an undisturbed run's"
            manifests = [folder / f"{name}.manifest.json" for name in ("out", "verified")]
            assert not output.exists() or filecmp.cmp(*manifests, shallow=False), "another manifest"
    finally:
        for left in (output, partial):
            shutil.rmtree(left, ignore_errors=True)
        (folder / "out.manifest.json").unlink(missing_ok=True)


def same(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    return names == sorted(file.name for file in other.iterdir()) and not any(
        filecmp.cmpfiles(one, other, names, shallow=False)[1:]
    )


def checked(file: Path, folder: Path) -> None:
    """A mutant never passes for what the manifest says."""
    changed = not filecmp.cmp(file, folder / "verified" / file.name, shallow=False)
    assert not (changed and crossdock.check(folder / "checked").ok), "a changed file passed the check"


def verified(name: str, **options: Any) -> Reader:
    def read(file: Path, folder: Path) -> object:
        report = crossdock.verify(folder / name, folder / "hf", **options, **SMALL)
        tensors = data_of(file) if file.suffix == ".safetensors" and report.ok else None
        assert tensors is None or tensors == data_of(folder / "hf" / file.name), "changed values were verified"
        return report

    return read


def data_of(file: Path) -> dict[str, bytes]:
    """Tensor -> its bytes."""
    data, (found, begin) = file.read_bytes(), safetensors_places(file)
    return {name: data[begin + low : begin + high] for name, (low, high) in found.items()}


def safetensors_places(file: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Tensor -> (begin, end) within the data, and where the data begins; read with the standard library."""
    import json
    import struct

    data = file.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + size])
    return {name: tuple(one["data_offsets"]) for name, one in header.items() if name != "__metadata__"}, 8 + size


def opened(name: str, to: str = "", **options: Any) -> Reader:
    def read(file: Path, folder: Path) -> object:
        checkpoint = crossdock.open(folder / name, **{key: folder / value for key, value in options.items()})
        return crossdock.plan(checkpoint, to) if to else checkpoint

    return read


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "model.safetensors": lambda file, _: read_safetensors(file),
        "config.json": lambda file, _: json_object(file.read_bytes(), CONFIGURATION, str(file)),
        "tokenizer.json": lambda file, _: read_tokenizer(file),
        "spm/tokenizer.model": lambda file, _: read_tokenizer(file),
        "kjv.gguf": lambda file, _: read_gguf(file),
        "zip.pt": lambda file, _: list(torchfile.state_tensors(torchfile.open_torch(file).root)),
        "legacy.pt": lambda file, _: list(torchfile.state_tensors(torchfile.open_torch(file).root)),
        "iter/.metadata": lambda file, _: dcp.read_metadata(file.parent),
        "__0_0.distcp": lambda file, _: scan(file),
        "run_config.yaml": lambda file, _: read_section(
            file.read_bytes().decode("utf-8", "replace"), "model", str(file)
        ),
        "small.ggcp": opened("small.ggcp", "gguf"),
        "small.ggcl": opened("small.ggcl", "gguf-lora"),
        "trtllm/config.json": opened("trtllm", "hf"),
        "trtllm/rank0.safetensors": opened("trtllm", "hf"),
        "peft/adapter_config.json": lambda _, folder: crossdock.verify(folder / "peft", folder / "small.ggcl", **SMALL),
        "peft/adapter_model.safetensors": lambda _, folder: crossdock.verify(
            folder / "peft", folder / "small.ggcl", **SMALL
        ),
        "index.gpuidx": lambda file, _: gpuidx.disagreements(gpuidx.read(file)),
        "activations/activation_1.pt": lambda file, _: read_statistics(file.parent),
        "logits.npy": lambda file, folder: crossdock.verify(
            folder / "verified", folder / "hf", logits=[1, 2, 3, 4], reference=file, **SMALL
        ),
        "tokens.npy": lambda file, folder: crossdock.verify(
            folder / "verified", folder / "hf", logits=f"@{file}", **SMALL
        ),
        "said.json": opened("hf", "gguf", config="said.json"),
        "checked.manifest.json": lambda _, folder: crossdock.check(folder / "checked"),
        "checked/model.safetensors": checked,
        "checked/config.json": checked,
        "verified/model.safetensors": verified("verified"),
        "verified/config.json": verified("verified"),
        "verified.gguf": verified("verified.gguf"),
        "verified.manifest.json": verified("verified"),
        f"resumed.partial/{NAME}": resumed,
        "resumed.partial/model.safetensors": resumed,
    }
)


def mutated(data: bytes, rng: Rng, name: str) -> bytes:
    """A mutant of a file's bytes."""
    if name.endswith((".json", ".safetensors")) and rng.random() < 0.5:
        return changed_json(data, rng)
    if name.endswith(NAME) and rng.random() < 0.7:
        lines = data.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at] = changed_json(lines[at], rng) + b"\n"
        return b"".join(lines)
    return (cut_off if rng.random() < 0.15 else changed_bytes)(data, rng)
