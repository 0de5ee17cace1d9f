"""Compiled encoders: the bytes of the numpy ones, on every awkward value, and never without need."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from crossdock.codecs import compiled_encoders, registry
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.conversion import convert
from oracles.ggml_reference import awkward_values

VALUES = awkward_values()
COMPILED = [name for name in registry.names() if registry.get(name).compiled]


def converted(source: str, target: str, raw: np.ndarray, compiled: bool) -> np.ndarray:
    a, b = registry.get(source), registry.get(target)
    out = np.full(encoded_size(b, raw.size // a.block_bytes), 0x5A, np.uint8)
    convert(a, b, compiled)(raw, out)
    return out


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_numpy(name: str, values: str) -> None:
    raw = VALUES[values].view(np.uint8)
    ours = converted("float32", name, raw, True)
    assert np.array_equal(ours, converted("float32", name, raw, False))


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
def test_compiled_equals_numpy_on_any_bytes(name: str, source: str) -> None:
    """Random patterns with nan and inf among them, and blocks with one such value each."""
    raw = np.random.default_rng(13).integers(0, 256, 1 << 18, dtype=np.uint8)
    assert np.array_equal(converted(source, name, raw, True), converted(source, name, raw, False))
    values = VALUES["few levels, tied maxima"].copy()
    specials = np.float32([np.nan, -np.nan, np.inf, -np.inf])
    values[5::37] = np.resize(specials, values[5::37].size)
    values[6 : 32 * 400 : 64] = -np.inf
    raw = values.view(np.uint8)
    assert np.array_equal(converted("float32", name, raw, True), converted("float32", name, raw, False))


@pytest.mark.parametrize("name", COMPILED)
def test_scales_of_every_float16_exponent(name: str) -> None:
    """Block maxima around every float16 rounding boundary, denormal and overflowing ones included."""
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    tops = np.concatenate([halves[:-1], middles, np.nextafter(middles, 0), np.nextafter(middles, halves[1:])])
    values = np.zeros((tops.size // 8 * 8, 32), np.float32)
    values[:, 9] = tops[: len(values)].astype(np.float32) * 127
    raw = values.reshape(-1).view(np.uint8)
    assert np.array_equal(converted("float32", name, raw, True), converted("float32", name, raw, False))


def test_q8_0_and_all_k_types_are_compiled() -> None:
    assert COMPILED == ["q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]


def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled_encoders.OFF, raising=False)
    assert compiled_encoders.available(registry.get("q8_0"))
    assert not compiled_encoders.available(registry.get("q5_1"))
    monkeypatch.setenv(compiled_encoders.OFF, "1")
    assert not compiled_encoders.available(registry.get("q8_0"))


@pytest.mark.parametrize(("target", "off", "imported"), [("q8_0", "", True), ("q8_0", "1", False), ("bf16", "", False)])
def test_numba_is_imported_only_when_it_is_used(target: str, off: str, imported: bool) -> None:
    program = (
        "import sys, numpy as np\n"
        "from crossdock.codecs import conversion, registry\n"
        f"convert = conversion.convert(registry.get('float32'), registry.get('{target}'))\n"
        "assert 'numba' not in sys.modules\n"
        "size = convert.target.block_bytes * 32 // convert.target.block\n"
        "convert(np.zeros(128, np.uint8), np.zeros(size, np.uint8))\n"
        "print('numba' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path), compiled_encoders.OFF: off, "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == str(imported)
