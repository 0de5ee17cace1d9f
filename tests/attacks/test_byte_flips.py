"""Random damage to small real files: a result or a clean error, never another exception."""

from __future__ import annotations

import argparse
import collections
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crossdock import torchfile, unpickle
from crossdock.errors import CrossdockError
from crossdock.formats.dcp import metadata as dcp
from crossdock.scan import scan
from crossdock.scan.walk import Budget, walk
from crossdock.unpickle.opcodes import ARGUMENTS

ROUNDS = 400


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, removed, doubled, or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, kind = rng.randrange(len(out)), rng.random()
        if kind < 0.6:
            out[at] = rng.randrange(256)
        elif kind < 0.75:
            out[at] ^= 1 << rng.randrange(8)
        elif kind < 0.85:
            del out[at : at + rng.randrange(1, 20)]
        elif kind < 0.95:
            source = rng.randrange(len(out))
            out[at:at] = out[source : source + rng.randrange(1, 20)]
        else:
            del out[at:]
        if not out:
            out = bytearray(b".")
    return bytes(out)


def survive(read: Callable[[], object]) -> bool:
    """True for a result, False for a CrossdockError; anything else fails the test."""
    try:
        read()
    except CrossdockError as error:
        return not error.text()  # an error without words would count as survival
    return True


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_torch_files(modern: bool, tmp_path: Path) -> None:
    weights = collections.OrderedDict(a=torch.arange(6).reshape(2, 3), b=torch.ones(3, dtype=torch.bfloat16))
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    saved = {"model": weights, "args": argparse.Namespace(x=1, dtype=torch.bfloat16), "iteration": 3}
    file = tmp_path / "a.pt"
    torch.save(saved, file, _use_new_zipfile_serialization=modern)
    whole = file.read_bytes()
    rng = random.Random(7)
    survived = 0
    for _ in range(ROUNDS):
        file.write_bytes(damaged(whole, rng))
        survived += survive(lambda: list(torchfile.state_tensors(torchfile.open_torch(file).root)))
        scan(file)
    assert 0 < survived < ROUNDS


def test_metadata(megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = megatron_checkpoint("gpt2-v019-dist-tp2-fp32") / "iter_0000010"
    folder = tmp_path / "iter"
    shutil.copytree(source, folder)
    whole = (source / ".metadata").read_bytes()
    rng = random.Random(8)
    survived = 0
    for _ in range(ROUNDS):
        (folder / ".metadata").write_bytes(damaged(whole, rng))
        survived += survive(lambda: dcp.stored_tensors(dcp.read_metadata(folder), folder))
    assert 0 < survived < ROUNDS
    for _ in range(10):
        (folder / ".metadata").write_bytes(damaged(whole, rng))
        scan(folder)


def test_random_programs() -> None:
    """Sequences of opcodes with plausible arguments."""
    rng = random.Random(9)
    names = [b"collections\nOrderedDict\n", b"torch\nSize\n", b"torch._utils\n_rebuild_tensor_v2\n"]
    names += [b"argparse\nNamespace\n", b"torch._tensor\n_rebuild_from_type_v2\n", b"__builtin__\nset\n"]
    names += [b"copyreg\n_reconstructor\n", b"torch._utils\n_rebuild_parameter\n", b"os\nsystem\n"]
    texts = [b"", b"a", b"latin1", b"torch", b"Size", b"storage"]
    storage = unpickle.StorageRef("0", "float32", 0, 64)
    opcodes = list(b")]}(\x94hhqNKKM\x88\x89\x85\x86\x87tRRRb\x81sauecc\x93\x8cX\x8f\x90\x91\x92Q0C") * 4
    opcodes += list(ARGUMENTS)
    survived = 0
    for _ in range(20_000):
        program = bytearray(b"\x80\x02")
        for _ in range(rng.randrange(2, 30)):
            op = rng.choice(opcodes)
            program.append(op)
            kind = ARGUMENTS[op]
            if kind == "lines":
                program += rng.choice(names)
            elif kind == "line":
                program += rng.choice((b"1\n", b"x\n"))
            elif kind.startswith("l"):
                text = rng.choice(texts)
                program += len(text).to_bytes(int(kind[1:]), "little") + text
            elif kind:
                program += bytes([rng.randrange(6)]) + bytes(int(kind) - 1)
        data = bytes(program) + b"."
        survived += survive(lambda data=data: unpickle.load(data, where="x", persistent=lambda pid: storage))
        walk(lambda at, count, data=data: data[at : at + count], 0, len(data), Budget.of(len(data)))
    assert survived > 100
