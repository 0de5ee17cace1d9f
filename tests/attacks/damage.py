"""Damage to a checkpoint's files, seeded; and everything a user can do with the damaged one, watched.

A file is cut off, bytes of it are changed, moved or removed, or a value of its JSON is replaced. Then the checkpoint is
opened, planned, exported and verified. The only outcomes allowed are a whole result and a CrossdockError with words.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crossdock
from crossdock import delivery
from crossdock.errors import CrossdockError
from crossdock.formats import registry
from crossdock.planning.config.overrides import Overrides

Rng = random.Random
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 63, 65, 10**6, 2**31, 2**40, -(2**63), 2**63, 2**64, 10**30, 0.0, -0.5,
    1e-300, 1e308, float("inf"), float("nan"), "", "0", "1", "abc", "F32", "\ud800", "\0", "../../x", "a" * 999,
    [], [0], [1, 2], [[]], [None], ["a"], [-1, 2**62], [2**40, 2**40], {}, {"a": 1}, {"rope_type": "yarn"}, {"": None},
)  # fmt: skip
SECONDS = 60  # for one attempt, which takes a tenth: a hang, not a measurement
MEMORY = 400 << 20  # resident bytes


def changed_bytes(data: bytes, rng: Rng) -> bytes:
    """Bytes flipped, set, removed, doubled, zeroed, or a number that lies; mostly where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        near = rng.choice((len(out), len(out), 64, 1024, 16384))
        at = rng.randrange(min(near, len(out)))
        if rng.random() < 0.4:
            at = len(out) - 1 - at
        kind = rng.random()
        if kind < 0.35:
            out[at] ^= 1 << rng.randrange(8)
        elif kind < 0.55:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind < 0.7:
            number = rng.choice((0, 1, -1, 2**31 - 1, 2**32, 2**60, -(2**63), rng.randrange(2**20)))
            size, code = rng.choice(((4, "<i"), (8, "<q")))
            out[at : at + size] = struct.pack(code, (number + 2**31) % 2**32 - 2**31 if size == 4 else number)
        elif kind < 0.8:
            del out[at : at + rng.choice((1, 2, 8, 100))]
        elif kind < 0.9:
            start = rng.randrange(len(out))
            out[at:at] = out[start : start + rng.choice((1, 4, 8, 100))]
        else:
            end = min(len(out), at + rng.choice((4, 16, 256)))
            out[at:end] = bytes(end - at)
    return bytes(out)


def cut_off(data: bytes, rng: Rng) -> bytes:
    """The first bytes of `data`."""
    near = rng.choice((len(data), 64, 4096))
    return data[
        : max(0, rng.choice((rng.randrange(len(data) + 1), len(data) - rng.randrange(min(near, len(data)) + 1))))
    ]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def changed_value(tree: Any, rng: Rng) -> Any:
    """A copy of a JSON tree with a few values replaced, removed or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        at, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.65:
            at[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.75:
            other, its = rng.choice(places)
            at[key] = copy.deepcopy(other[its])
        elif kind < 0.9 or isinstance(at, list):
            del at[key]
        else:
            at[rng.choice(("zzz", "num_experts", "", "__metadata__", key + "s"))] = at.pop(key)
    return tree


def changed_json(data: bytes, rng: Rng) -> bytes:
    """A JSON document, or the header of a safetensors file, with values replaced."""
    begin = data.lstrip()[:1]
    if begin in (b"{", b"["):
        return json.dumps(changed_value(json.loads(data), rng)).encode("utf-8", "replace")
    size = struct.unpack_from("<Q", data)[0]
    header = json.dumps(changed_value(json.loads(data[8 : 8 + size]), rng)).encode("utf-8", "replace")
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def damage(folder: Path, rng: Rng) -> str:
    """Damage one file under `folder` (or remove it); what was done."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".npy")
    file = rng.choice(files)
    data = file.read_bytes()
    has_json = file.suffix in (".json", ".safetensors")
    kind = rng.choice(
        ("bytes", "bytes", "cut", "json", "json", "json") if has_json else ("bytes", "bytes", "bytes", "cut")
    )
    if rng.random() < 0.01:
        file.unlink()
        return f"{file.name} removed"
    file.write_bytes({"bytes": changed_bytes, "cut": cut_off, "json": changed_json}[kind](data, rng))
    return f"{file.name} {kind}"


@contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Put every file back at the end."""
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    try:
        yield
    finally:
        for file, data in before.items():
            if not file.exists() or file.read_bytes() != data:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)


class TookTooLong(Exception):
    """An attempt hung."""


@contextmanager
def watched() -> Iterator[None]:
    """Raise TookTooLong after SECONDS, and AssertionError when resident memory grew by more than MEMORY."""

    def late(*_: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = _resident("VmHWM")
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _resident("VmHWM") - start < MEMORY


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def survive(do: Callable[[], object]) -> bool:
    """True for a result, False for a CrossdockError that says something; anything else gets through."""
    try:
        do()
    except CrossdockError as error:
        if not error.text().strip():
            raise
        return False
    return True


def export_both(open_it: Callable[[], crossdock.Checkpoint], work: Path, verify: bool = True) -> int:
    """Open, then plan, run and verify for each target in `work`; how many outputs came out whole."""
    made = 0
    if not survive(open_it):
        return 0
    checkpoint = open_it()
    for to in ("hf", "gguf"):
        output = work / f"out.{to}"
        try:
            plan = crossdock.plan(checkpoint, to)
            assert plan.nbytes < 64 << 20, "a small checkpoint became a large output"
            crossdock.run(plan, output, memory=8 << 20, workers=1)
            if verify:
                crossdock.verify(output, checkpoint, memory=8 << 20, workers=1)
            made += 1
        except CrossdockError as error:
            if not error.text().strip():
                raise
        if not output.exists():
            assert not output.with_name(output.name + ".manifest.json").exists()
        for left in work.glob("out.*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return made


def open_changed_keys(path: Path, rng: Rng) -> Callable[[], crossdock.Checkpoint]:
    """The checkpoint at `path`, with values of its configuration replaced as if its file had said so."""
    source = registry.open_source(path)
    metadata = changed_value(dict(source.metadata), rng)
    changed = dataclasses.replace(source, metadata=metadata if isinstance(metadata, dict) else {})
    return lambda: delivery.interpret(changed, Overrides(None, {}))
