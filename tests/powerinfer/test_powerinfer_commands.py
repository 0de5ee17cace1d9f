"""`crossdock split`, `verify` and `inspect` of an index, and the drop-in module, as processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from powerinfer_samples import CASES, DATA, model, save

from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.statistics import read_statistics

DROPIN = Path(__file__).parents[2] / "powerinfer-dropin"
U4 = DATA / "u4x1024_i64"
TYPES = [("q4_0", "q4_0", "q4_0"), ("q4_0", "q4_0", "q8_0"), ("q4_0", "q4_0", "q4_0"), ("float16",) * 3]
NEURONS = [3 * 144 + 4, 2 * 144 + 272 + 4, 3 * 144 + 4, 3 * 512 + 4]  # bytes of a neuron at hidden size 256
KV = 2 * 128 * 4 * 2  # K and V, 2 heads of 64, 4 layers, float16


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The drop-in as PowerInfer's program starts it."""
    path = os.pathsep.join([str(DROPIN), *filter(None, sys.path)])
    command = [sys.executable, "-m", "powerinfer", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=os.environ | {"PYTHONPATH": path}
    )


def test_capacity_gives_the_official_file(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    case = CASES[1]
    out, plot = tmp_path / "m.gpuidx", tmp_path / "split.svg"
    said = crossdock(
        "split", DATA / case["folder"], "--capacity", str(case["capacity"]), "--threshold", str(case["threshold"]),
        "--vram-capacity", "5B", "--plot", plot, "-o", out,
    ).ok()  # fmt: skip
    assert out.read_bytes() == (DATA / "out" / "u4x1024_i64.cap2252.thr512.b256.head.gpuidx").read_bytes()
    assert "95.05% of all activations" in said.stdout
    assert "optimal" in said.stdout
    root = ElementTree.fromstring(plot.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # two rectangles a layer and the background; the layers' bars are half as high as their frames
    heights = [float(one.attrib["height"]) for one in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert [round(b / a, 2) for a, b in zip(heights[::2], heights[1::2], strict=True)] == [0.5] * 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.gpuidx", "split.svg"]


@pytest.mark.parametrize("threshold", [0, 512])
def test_a_budget_is_spent_in_true_bytes(crossdock: Callable[..., Any], tmp_path: Path, threshold: int) -> None:
    gguf, out = tmp_path / "m.gguf", tmp_path / "m.gguf.generated.gpuidx"
    first = model(gguf, TYPES, 256, 1024)
    budget = first + 100 * KV + 900_000
    said = crossdock(
        "split", U4, "--vram-budget", f"{budget}B", "--model", gguf, "--ctx", "100",
        "--threshold", str(threshold), "--json", "-o", out,
    ).ok().json()  # fmt: skip
    index = gpuidx.read(out)
    needed = sum(n * size for n, size in zip(index.neurons, NEURONS, strict=True))
    assert said["budget"] == 900_000
    assert said["nbytes"] == said["vram_capacity"] == index.vram_capacity == needed <= 900_000
    # every choice there is
    counts = [np.sort(layer)[::-1] for layer in read_statistics(U4).counts]
    best = max(
        sum(int(layer[:k].sum()) for layer, k in zip(counts, ks, strict=True))
        for ks in itertools.product(range(0, 1025, 256), repeat=4)
        if sum(k * size for k, size in zip(ks, NEURONS, strict=True)) <= 900_000
        and all(k == 0 or k >= threshold for k in ks)
    )
    assert said["objective"] == best
    report = crossdock("verify", out, "--against", U4, "--model", gguf, "--json").ok().json()
    assert report["nbytes"] == needed
    assert report["coverage"] == said["coverage"]


def test_a_budget_below_what_comes_first_says_both_numbers(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    gguf = tmp_path / "m.gguf"
    first = model(gguf, TYPES, 256, 1024)
    said = crossdock("split", U4, "--vram-budget", "1MB", "--model", gguf, "-o", tmp_path / "o.gpuidx")
    assert said.code == 2
    assert f"{first:,} for attention" in said.stderr
    assert f"{512 * KV:,} for the KV cache" in said.stderr
    assert not (tmp_path / "o.gpuidx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--capacity", "5", "--vram-budget", "1GB"], 2, "either --capacity"),
        ([], 2, "either --capacity"),
        (["--vram-budget", "1GB"], 2, "needs --model"),
        (["--capacity", "999", "--grain", "5000"], 2, "larger than a layer"),
        (["--capacity", "999", "--model", "absent.gguf"], 3, "does not exist"),
        (["--capacity", "999", "-o", "absent/m.gpuidx"], 4, "error: absent/m.gpuidx: the index cannot be written"),
    ],
)
def test_requests_that_cannot_be(
    crossdock: Callable[..., Any], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    said = crossdock("split", U4, "-o", tmp_path / "o.gpuidx", *arguments)
    assert said.code == code
    assert words in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_budget_for_nothing_says_so(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    said = crossdock("split", U4, "--capacity", "300", "--threshold", "512", "-o", tmp_path / "o.gpuidx").ok()
    assert "smaller than the least part of any layer" in said.stdout
    assert gpuidx.read(tmp_path / "o.gpuidx").neurons == (0, 0, 0, 0)


def test_hostile_statistics_leave_nothing(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    said = crossdock("split", DATA / "hostile", "--capacity", "999", "-o", tmp_path / "o.gpuidx")
    assert said.code == 3
    assert "posix.system" in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_the_official_mix_up_of_layers(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    layers = [rng.permutation(600) for _ in range(12)]
    right = save(tmp_path / "right", layers)
    mixed = save(tmp_path / "mixed", [layers[number] for number in sorted(range(12), key=str)])
    good, bad = tmp_path / "good.gpuidx", tmp_path / "bad.gpuidx"
    for folder, out in ((right, good), (mixed, bad)):
        crossdock("split", folder, "--capacity", "3072", "-o", out).ok()
    assert not crossdock("verify", good, "--against", right, "--json").ok().json()["mixed_up"]
    said = crossdock("verify", bad, "--against", right, "--json")
    assert said.code == 1
    assert said.json()["mixed_up"]
    other = crossdock("verify", good, "--against", save(tmp_path / "other", layers[::-1]), "--json")
    assert other.code == 1
    assert not other.json()["mixed_up"]
    assert "colder" in other.json()["problems"][0]["what"]


def test_verify_of_other_grains_budgets_and_values(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    gguf, out = tmp_path / "m.gguf", tmp_path / "o.gpuidx"
    model(gguf, TYPES, 256, 1024)
    crossdock("split", U4, "--capacity", "100", "--grain", "32", "--vram-capacity", "10B", "-o", out).ok()
    said = crossdock("verify", out, "--against", U4, "--model", gguf)
    assert said.code == 1
    assert "not a multiple of 256" in said.stdout
    assert "needs more VRAM than the index says" in said.stdout
    index = gpuidx.read(out)
    index.flags[2][:] = 0
    gpuidx.write(out, index)
    for command in (["inspect", out], ["verify", out, "--against", U4]):
        said = crossdock(*command)
        assert said.code == 1
        assert "name different neurons" in said.stdout
    said = crossdock("verify", out, "--against", DATA / "u8x1536_f32")
    assert said.code == 3
    assert "another number of layers" in said.stderr


def test_the_grain_is_that_of_the_models_types(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    """Groups of 32 are for F16 only; what the kernels would leave out is refused, not written."""
    quantised, plain, out = tmp_path / "q.gguf", tmp_path / "f16.gguf", tmp_path / "m.gpuidx"
    model(quantised, TYPES, 256, 1024)
    model(plain, [("float16",) * 3] * 4, 256, 1024)
    options = ["split", U4, "--capacity", "100", "--grain", "32", "-o", out, "--model"]
    said = crossdock(*options, quantised)
    assert (said.code, out.exists()) == (2, False)
    assert "a multiple of 256 for the types of this model" in said.stderr
    crossdock(*options, plain).ok()
    crossdock("verify", out, "--against", U4, "--model", plain).ok()
    said = crossdock("verify", out, "--against", U4, "--model", quantised)
    assert said.code == 1
    assert "not a multiple of 256" in said.stdout


def test_inspect_shows_an_official_file(crossdock: Callable[..., Any]) -> None:
    file = next((DATA / "out").glob("u8x1536*thr0*"))
    assert "3,072 of 12,288 neurons" in crossdock("inspect", file).ok().stdout
    record = crossdock("inspect", file, "--json").ok().json()
    assert [layer["neurons"] for layer in record["layers"]] == CASES[2]["head"]["solved"]
    assert record["vram_capacity"] == CASES[2]["vram_capacity"]


def test_the_module_takes_the_official_arguments_and_paths_with_spaces(tmp_path: Path) -> None:
    folder = save(tmp_path / "my models -v2 - new" / "activation", _counts(U4))
    out = folder.parent / "m.gguf.generated.gpuidx"
    case = CASES[0]
    # without quotes, as the program passes them on
    said = run(
        "--activation", *str(folder).split(" "), "--layer", "4", "--neuron", "1024",
        "--capacity", str(case["capacity"]),
        "--vram-capacity", str(case["vram_capacity"]), "--output", *str(out).split(" "),
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (0, ""), said.stderr
    assert out.read_bytes() == (DATA / "out" / "u4x1024_i64.cap1228.thr0.b256.head.gpuidx").read_bytes()


def test_the_module_uses_the_model_beside_the_output(tmp_path: Path) -> None:
    model(tmp_path / "m.gguf", TYPES, 256, 1024)
    out = tmp_path / "m.gguf.generated.gpuidx"
    said = run(
        "--activation", U4, "--layer", "4", "--neuron", "1024", "--capacity", "4", "--vram-capacity", "900000",
        "--output", out,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (0, ""), said.stderr
    index = gpuidx.read(out)
    needed = sum(n * size for n, size in zip(index.neurons, NEURONS, strict=True))
    assert index.vram_capacity == needed
    assert 700_000 < needed <= 900_000


def test_the_module_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf.generated.gpuidx"
    for folder, words in ((DATA / "hostile", "posix.system"), (U4, "59 layers of 32,768 neurons")):
        said = run("--activation", folder, "--output", out)  # the official defaults fit neither
        assert said.returncode > 0
        assert said.stdout == ""
        assert words in said.stderr
        assert "Traceback" not in said.stderr
    assert list(tmp_path.iterdir()) == []


def _counts(folder: Path) -> list[np.ndarray]:
    return list(read_statistics(folder).counts)
