"""Names, aliases, and codecs of other packages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crossdock.codecs import registry
from crossdock.codecs.conversion import convert
from crossdock.errors import EnvironmentProblem, UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        ("half", "float16"),
        ("fp16", "float16"),
        ("F32", "float32"),
        (" float ", "float32"),
        ("Q8_0", "q8_0"),
        ("q8-0", "q8_0"),
        ("Q4_K", "q4_k"),
        ("fp8", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("i64", "int64"),
    ],
)
def test_aliases(text: str, name: str) -> None:
    assert registry.canonical_name(text) == name
    assert registry.get(text).name == name


def test_every_alias_leads_to_a_codec() -> None:
    assert {registry.canonical_name(alias) for alias in registry.ALIASES} <= set(registry.names())


@pytest.mark.parametrize("text", ["", "q8_1000", "bfloat61", "x" * 10_000, "\x00"])
def test_unknown_names_are_refused_with_what_is_near(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.get(text)
    assert len(str(caught.value)) < 1000
    assert caught.value.problems[0].expected


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UsageError, match=r"expected .*bfloat16"):
        registry.get("bfloat61")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with three codecs: a good one, one under a wrong name, one that cannot be imported."""
    (tmp_path / "negated_codec.py").write_text(
        textwrap.dedent("""
        import numpy as np

        class Negated:
            name, block, block_bytes, exact, encodes = "negated", 2, 8, True, True
            searches, cost, is_scaled, file_type, compiled = False, 0, False, None, ""

            def encode(self, values, out):
                np.negative(values, out=out.view(np.float32))

            def decode(self, raw, out):
                np.negative(raw.view(np.float32), out=out)

        class Bare:
            name, block, block_bytes, exact, encodes = "bare", 2, 8, True, True

        good, bare = Negated(), Bare()
        """)
    )
    info = tmp_path / "negated_codec-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: negated-codec\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[crossdock.codecs]\nnegated = negated_codec:good\nmisnamed = negated_codec:good\n"
        "broken = negated_codec:absent\nbare = negated_codec:bare\nfloat32 = negated_codec:good\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._registered.cache_clear()
    registry._load.cache_clear()
    yield
    registry._registered.cache_clear()
    registry._load.cache_clear()


@pytest.mark.usefixtures("plugins")
def test_a_registered_codec_converts_like_our_own() -> None:
    assert registry.names()[-4:] == ("bare", "broken", "misnamed", "negated")
    raw = np.arange(100_000, dtype=np.float32).view(np.uint8)
    out = np.zeros_like(raw)
    convert(registry.get("float32"), registry.get("Negated"))(raw, out)
    assert np.array_equal(out.view(np.float32), -np.arange(100_000, dtype=np.float32))
    back = np.zeros_like(raw)
    convert(registry.get("negated"), registry.get("float32"))(out, back)
    assert np.array_equal(back, raw)


@pytest.mark.usefixtures("plugins")
def test_plugins_cannot_lie_or_replace_our_own() -> None:
    with pytest.raises(EnvironmentProblem, match="expected misnamed, got negated"):
        registry.get("misnamed")
    with pytest.raises(EnvironmentProblem, match="cannot be loaded"):
        registry.get("broken")
    with pytest.raises(EnvironmentProblem, match="'bare' lacks compiled, cost, decode, encode, file_type"):
        registry.get("bare")
    assert type(registry.get("float32")).__module__ == "crossdock.codecs.cast"
