"""A format, a codec and an engine of another package: each is one module and one line, and counts as our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
KJV = ROOT / "examples" / "tiny-kjv"
CODEC = '''
from dataclasses import dataclass
import numpy as np

LEVELS = np.float32([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])

@dataclass(frozen=True)
class Iq4Nl:
    """ggml's IQ4_NL: a float16 scale, 32 nibbles that stand for uneven levels."""
    name: str = "iq4_nl"
    block: int = 32
    block_bytes: int = 18
    exact: bool = False
    encodes: bool = True
    searches: bool = False
    cost: int = 1
    is_scaled: bool = False
    file_type: int = 25
    compiled: str = ""

    def encode(self, values, out):
        rows, blocks = values.reshape(-1, 32), out.reshape(-1, 18)
        scale = (np.abs(rows).max(axis=1) / 113).astype(np.float16)
        divided = rows / np.where(scale == 0, 1, scale.astype(np.float32))[:, None]
        nearest = np.abs(divided[:, :, None] - LEVELS).argmin(axis=2).astype(np.uint8)
        blocks[:, :2] = scale[:, None].view(np.uint8)
        blocks[:, 2:] = nearest[:, :16] | nearest[:, 16:] << 4

    def decode(self, raw, out):
        blocks = raw.reshape(-1, 18)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        packed = blocks[:, 2:]
        out.reshape(-1, 32)[:] = scale * LEVELS[np.concatenate([packed & 15, packed >> 4], axis=1)]

codec = Iq4Nl()
'''
TARGET = '''
import json
import math
from dataclasses import dataclass
from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import encoded_size
from crossdock.formats.options import Options
from crossdock.formats.stored import Extent, Source, SourceFile, StoredTensor
from crossdock.formats.target import Assembled, Encoding, Target, TargetFile
from crossdock.options import option, positive

@dataclass(frozen=True, kw_only=True)
class FlatOptions(Options):
    alignment: int = option("64", positive, "Bytes to which tensors are aligned.", "N")

class FlatTarget(Target[FlatOptions]):
    """One file of bytes and one of places, under Hugging Face's names."""
    name = "flat"
    layout = "hf"
    options_type = FlatOptions

    def encoding(self, tensor, found):
        return Encoding("float32")

    def assemble(self, tensors, found):
        at, places = 0, []
        for tensor in tensors:
            at = -(-at // self.options.alignment) * self.options.alignment
            places.append(at)
            at += encoded_size(codecs.get(tensor.dtype), math.prod(tensor.shape))
        index = {t.name: [place, *t.shape] for t, place in zip(tensors, places)}
        text = json.dumps({"alignment": self.options.alignment, "tensors": index}).encode()
        files = (TargetFile("data.bin", at, b""), TargetFile("flat.json", len(text), text))
        return Assembled(files, tuple((0, place) for place in places), facts={"alignment": self.options.alignment})

    @classmethod
    def reopen(cls, output):
        if not (output / "flat.json").is_file():
            return None
        said = json.loads((output / "flat.json").read_text())
        tensors = {}
        for name, (at, *shape) in said["tensors"].items():
            extent = Extent(0, at, 4 * math.prod(shape), (0,) * len(shape), tuple(shape))
            tensors["", name] = StoredTensor(name, tuple(shape), "float32", (extent,))
        return Source("flat", output, (SourceFile.of(output / "data.bin"),), tensors, said, str(output / "flat.json"))

    @classmethod
    def recorded(cls, output):
        return {"alignment": output.metadata["alignment"]}

    @classmethod
    def facts(cls, output):
        return {"alignment": json.loads((output / "flat.json").read_text())["alignment"]}
'''
ENGINE = """
from crossdock.running.engines.threads import Threads

class Loud(Threads):
    def work(self, job, tasks, **more):
        print(f"loud: {len(tasks)} tasks")
        super().work(job, tasks, **more)
"""
POINTS = """[crossdock.codecs]
iq4_nl = flat_plugin.codec:codec
[crossdock.targets]
flat = flat_plugin.target:FlatTarget
[crossdock.engines]
loud = flat_plugin.engine:Loud
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a process in which the package is installed."""
    root = tmp_path_factory.mktemp("site")
    (root / "flat_plugin").mkdir()
    for name, text in (("__init__", ""), ("codec", CODEC), ("target", TARGET), ("engine", ENGINE)):
        (root / "flat_plugin" / f"{name}.py").write_text(text)
    info = root / "flat_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(POINTS)
    return {**os.environ, "PYTHONPATH": f"{root}:{ROOT / 'src'}"}


def crossdock(plugin: Mapping[str, str], *words: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "crossdock", *map(str, words)]
    done = subprocess.run(command, env=plugin, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_help_lists_what_the_package_brings(plugin: Mapping[str, str]) -> None:
    text = crossdock(plugin, "export", "--help")
    assert "--alignment N" in text
    line = " ".join(text.split("--alignment N")[1].split()[:9])
    assert line == "Bytes to which tensors are aligned (flat). [default: 64]"
    assert "iq4_nl" in text.split("Values of --quantize:")[1].split("\n  hf ")[0]
    assert "flat" in text.split("--to FORMAT")[1].split("[required]")[0]


def test_its_format_is_written_and_verified_with_its_option(plugin: Mapping[str, str], tmp_path: Path) -> None:
    out = tmp_path / "flat"
    crossdock(plugin, "export", KJV, "--to", "flat", "--alignment", "4096", "-o", out)
    index = json.loads((out / "flat.json").read_text())["tensors"]
    assert {place[0] % 4096 for place in index.values()} == {0}
    assert "verified" in crossdock(plugin, "verify", out, "--against", KJV)
    with (out / "data.bin").open("r+b") as file:
        file.seek(index["model.norm.weight"][0])
        file.write(b"\x00\x00\x00\x40")
    assert "model.norm.weight" in crossdock(plugin, "verify", out, "--against", KJV, code=1)
    refused = crossdock(plugin, "plan", KJV, "--to", "gguf", "--alignment", "8", code=2)
    assert "gguf has no option --alignment" in refused
    assert "--to flat, which has it" in refused
    assert "flat has no option --tokenizer" in crossdock(
        plugin, "plan", KJV, "--to", "flat", "--tokenizer", "x", code=2
    )


def test_its_codec_quantises_gguf_files(plugin: Mapping[str, str], tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    crossdock(plugin, "export", KJV, "--to", "gguf", "-q", "iq4-nl", "-o", out)
    assert "verified" in crossdock(plugin, "verify", out, "--against", KJV)
    reader = gguf.GGUFReader(out)
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_IQ4_NL
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    assert {tensor.tensor_type for tensor in matrices} == {gguf.GGMLQuantizationType.IQ4_NL}
    crossdock(plugin, "export", KJV, "--to", "hf", "--dtype", "f32", "-o", tmp_path / "hf")
    crossdock(plugin, "export", out, "--to", "hf", "--dtype", "f32", "-o", tmp_path / "back")
    name = "model.layers.0.mlp.down_proj.weight"
    want, got = (_tensor(tmp_path / folder / "model.safetensors", name) for folder in ("hf", "back"))
    (stored,) = [tensor for tensor in matrices if tensor.name == "blk.0.ffn_down.weight"]
    assert np.array_equal(got, gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert 0 < np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_its_engine_runs_a_plan(plugin: Mapping[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert "loud: 39 tasks" in crossdock(plugin, "export", KJV, "--to", "gguf", "--engine", "loud", "-o", out)
    assert "loud: 39 tasks" in crossdock(plugin, "verify", out, "--against", KJV, "--engine", "loud")
    assert "threads\nloud" in crossdock(plugin, "diff", out, KJV, "--engine", "list")


def _tensor(file: Path, name: str) -> np.ndarray:
    from safetensors.numpy import load_file

    return np.asarray(load_file(file)[name])
