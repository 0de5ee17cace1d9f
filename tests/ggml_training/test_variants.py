"""Random files of every variant, by a writer that knows only the format; and what damage does to them."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock
from crossdock.errors import CrossdockError
from crossdock.formats.gguf.container import read_header
from support.ggml_training_files import LAYER, OLD_ADAM, Floats, Legacy, random_file, write

VARIANTS = [
    ("ggcp", "", "adam", True), ("ggcp", "0", "adam", True), ("ggcp", "0", "lbfgs", True), ("ggcp", "1", "adam", True),
    ("ggcp", "1", "lbfgs", True), ("ggcp", "1a", "adam", True), ("ggcp", "1a", "lbfgs", True),
    ("ggcl", "1", "adam", True), ("ggcl", "1", "lbfgs", True), ("ggcl", "1", "adam", False),
    ("ggcl", "1", "lbfgs", False),
]  # fmt: skip
NAMES = {"m": "first_moments", "v": "second_moments", "pf": "past_loss_values", "x": "current_parameters",
         "xp": "previous_parameters", "g": "current_gradients", "gp": "previous_gradients", "d": "search_direction",
         "lmal": "memory_alpha", "lmys": "memory_ys", "lms": "memory_s", "lmy": "memory_y"}  # fmt: skip


def tensors_of(path: Path) -> dict[str, Floats]:
    raw = path.read_bytes()
    return {
        t.name: np.frombuffer(raw, "<f4", int(np.prod(t.shape)), t.offset).reshape(t.shape)
        for t in read_header(path).tensors
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "version", "optimizer", "n_mult"), VARIANTS)
def test_every_variant_round_trips(
    kind: str, version: str, optimizer: str, n_mult: bool, seed: int, tmp_path: Path
) -> None:
    made = random_file(np.random.default_rng(seed), kind, version, optimizer, n_mult=n_mult)
    (tmp_path / "file").write_bytes(write(made))
    checkpoint = crossdock.open(tmp_path / "file")
    source = checkpoint.source
    assert {key: source.metadata[key] for key in made.sizes} == made.sizes
    if not version:
        crossdock.run(crossdock.plan(checkpoint, "gguf"), tmp_path / "out.gguf")
        got = list(tensors_of(tmp_path / "out.gguf").values())
        assert {one.tobytes() for one in got} == {one.tobytes() for one in made.tensors.values()}
        return
    assert f"block version {version}" in source.notes["optimizer"]
    plan = crossdock.plan(checkpoint, "gguf-checkpoint", keep_order=True)
    crossdock.run(plan, tmp_path / "out.gguf", memory=1 << 20)
    tensors = tensors_of(tmp_path / "out.gguf")
    vectors = {name: tensors.pop(f"optimizer.{optimizer}.{end}", None) for name, end in NAMES.items()}
    for mine, wanted in zip(tensors.values(), made.tensors.values(), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    for name, values in made.vectors.items():
        if values.size and not (optimizer == "adam" and name in set(OLD_ADAM) - {"m", "v", "pf"}):
            np.testing.assert_array_equal(vectors[name], values)
    found = read_header(tmp_path / "out.gguf").metadata
    assert found["optimizer.type"] == optimizer
    assert found["optimizer.convergence_past_count"] == made.tail["past"]
    assert found["optimizer.iteration_count"] == made.tail["iteration"]
    assert found["llama.context_length"] == made.sizes["train_tokens"] // made.sizes["train_samples"]
    assert found["llama.feed_forward_length"] == made.sizes["n_ff"]


def orders(made: Legacy) -> Iterator[list[str]]:
    """The order of GGUF's trainers; an order that no program has."""
    layers = range(made.sizes["n_layer"])
    spelled = dict(zip(LAYER, list(made.tensors)[3:12], strict=True))
    before, behind = ("w2", "w1", "ffn_norm", "wo", "wq", "attention_norm"), ("wk", "wv", "w3")

    def of(layer: int, stem: str) -> str:
        return spelled[stem].replace("layers.0.", f"layers.{layer}.")

    yield ["output.weight", "norm.weight", *(of(i, s) for i in reversed(layers) for s in before),
           "tok_embeddings.weight", *(of(i, s) for i in layers for s in behind)]  # fmt: skip
    yield random.Random(5).sample(list(made.tensors), len(made.tensors))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("version", "optimizer"), [("0", "adam"), ("0", "lbfgs"), ("1", "lbfgs")])
def test_vectors_follow_their_parameters(version: str, optimizer: str, seed: int, tmp_path: Path) -> None:
    """Every vector is a function of the parameters here, so wherever these go, it must be the same function there."""
    made = random_file(np.random.default_rng(seed), "ggcp", version, optimizer)
    wanted, other = orders(made)

    def flat(order: list[str]) -> Floats:
        return np.concatenate([made.tensors[name].reshape(-1) for name in order])

    made.vectors["x"] = flat(other)
    for row, name in enumerate(("m", "v", "xp", "g", "gp", "d")):
        if name in made.vectors:
            made.vectors[name] = flat(other) * np.float32(row + 2)
    for name in ("lms", "lmy"):
        if name in made.vectors:
            made.vectors[name] = np.stack([flat(other) + np.float32(i) for i in range(len(made.vectors[name]))])
    (tmp_path / "file").write_bytes(write(made))
    checkpoint = crossdock.open(tmp_path / "file")
    plan = crossdock.plan(checkpoint, "gguf-checkpoint")
    assert any("are rearranged" in text for text in plan.warnings)
    crossdock.run(plan, tmp_path / "out.gguf")
    assert crossdock.verify(tmp_path / "out.gguf", checkpoint).ok
    got = tensors_of(tmp_path / "out.gguf")
    for row, name in enumerate(("m", "v", "xp", "g", "gp", "d")):
        if name in made.vectors:
            ours = got[f"optimizer.{optimizer}.{NAMES[name]}"]
            np.testing.assert_array_equal(ours, flat(wanted) * np.float32(row + 2))
    if optimizer == "lbfgs":
        rows = [flat(wanted) + np.float32(i) for i in range(made.tail["memory"])]
        np.testing.assert_array_equal(got["optimizer.lbfgs.memory_s"].reshape(len(rows), -1), np.stack(rows))


def test_a_copy_that_differs_in_one_value_stops_the_run(tmp_path: Path) -> None:
    made = random_file(np.random.default_rng(1), "ggcp", "0", "adam")
    _, other = orders(made)
    copy = np.concatenate([made.tensors[name].reshape(-1) for name in other])
    at = sum(made.tensors[name].size for name in itertools.takewhile(lambda n: made.tensors[n].size < 70, other))
    copy[at + 33] += 1  # between the values at both ends that planning reads
    made.vectors["x"] = copy
    (tmp_path / "file").write_bytes(write(made))
    plan = crossdock.plan(crossdock.open(tmp_path / "file"), "gguf-checkpoint")
    with pytest.raises(CrossdockError, match="--keep-order copies"):
        crossdock.run(plan, tmp_path / "out.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def small(optimizer: str, kind: str, version: str) -> bytes:
    """The smallest of many random files."""
    rng = np.random.default_rng(7)
    return min((write(random_file(rng, kind, version, optimizer)) for _ in range(200)), key=len)


def damaged(raw: bytes, how: str, folder: Path) -> dict[str, Any]:
    """What came of damage, in a process of its own."""
    (folder / "file").write_bytes(raw)
    script = Path(__file__).with_name("damage_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "file"), how],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert not found["mute"]
    assert found["growth"] <= (1 + 64) << 20
    return found


@pytest.mark.parametrize(("kind", "version", "optimizer"), [
    ("ggcp", "0", "adam"), ("ggcp", "1", "lbfgs"), ("ggcl", "1", "adam"),
])  # fmt: skip
def test_every_truncation(kind: str, version: str, optimizer: str, tmp_path: Path) -> None:
    """Only behind the model of a ggcp may a file end early; then it is a model."""
    raw = small(optimizer, kind, version)
    found = damaged(raw, "cuts", tmp_path)
    assert found["rounds"] == len(raw) - 4
    assert len(found["opened"]) == found["exported"] == (kind == "ggcp")
    assert not found["unplaced"]


@pytest.mark.parametrize(("kind", "version", "optimizer"), [("ggcp", "0", "adam"), ("ggcl", "1", "lbfgs")])
def test_flipped_bytes(kind: str, version: str, optimizer: str, tmp_path: Path) -> None:
    """A result or a clean error, ten thousand times in both; most flips in what is no tensor data."""
    found = damaged(small(optimizer, kind, version), "flips", tmp_path)
    assert found["rounds"] == 5_000
    assert 20 < len(found["opened"]) < 5_000
    assert found["exported"] > 5
