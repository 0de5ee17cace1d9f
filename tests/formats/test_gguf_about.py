"""What a GGUF file says of its model for people, held against llama.cpp's own reader of model cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from crossdock import delivery
from crossdock.errors import CrossdockError
from crossdock.formats.gguf.container import read_header

ROOT = Path(__file__).resolve().parents[2]
CARD = """---
model_name: Tiny Verse 1M
license: other
license_name: my-license
license_link: LICENSE
base_model:
- some-org/Big-Model-7b-v2
- https://huggingface.co/other/plain
datasets: [bible/kjv]
language: [en, de]
tags:
- text
pipeline_tag: text-generation
---
# Words

---
"""
GENERATION = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": 0}
SAME = ("general.license", "general.license.name", "general.license.link", "general.tags", "general.languages")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a card and generation settings."""
    out = tmp_path_factory.mktemp("card") / "tiny-verse"
    delivery.export(ROOT / "examples/tiny-kjv", out, to="hf", tokenizer=ROOT / "examples/tiny-kjv-tokenizer")
    (out / "README.md").write_text(CARD)
    (out / "generation_config.json").write_text(json.dumps(GENERATION))
    return out


def information(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    delivery.export(source, out, to="gguf", **options)
    metadata = read_header(out).metadata
    return {key: list(value) if isinstance(value, tuple | list) else value for key, value in metadata.items()}


def test_a_model_card_is_read_as_llama_cpp_reads_it(folder: Path, tmp_path: Path) -> None:
    got = information(folder, tmp_path / "x.gguf")
    theirs = gguf.Metadata.load(model_path=folder)
    assert got["general.name"] == "Tiny Verse 1M"
    wanted = (theirs.license, theirs.license_name, theirs.license_link, theirs.tags, theirs.languages)
    assert tuple(got[key] for key in SAME) == wanted
    assert theirs.base_models is not None
    assert got["general.base_model.count"] == len(theirs.base_models) == 2
    for number, one in enumerate(theirs.base_models):
        mine = {key: got.get(f"general.base_model.{number}.{key}") for key in ("name", "organization", "repo_url")}
        assert mine == {key: one.get(key) for key in mine}
    assert got["general.dataset.0.repo_url"] == "https://huggingface.co/bible/kjv"
    assert got["general.sampling.temp"] == pytest.approx(theirs.sampling_temp)
    assert (got["general.sampling.top_k"], got["general.sampling.top_p"]) == (20, pytest.approx(0.95))


def test_what_is_given_goes_before_what_the_source_says(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "more.json"
    given.write_text(json.dumps({"general.author": "me", "general.name": "two", "general.sampling.temp": 0.1}))
    got = information(folder, tmp_path / "x.gguf", metadata=given, name="one")
    assert (got["general.name"], got["general.author"]) == ("one", "me")
    assert got["general.sampling.temp"] == pytest.approx(0.1)


def test_it_travels_from_one_gguf_file_to_the_next_and_is_verified_there(folder: Path, tmp_path: Path) -> None:
    first = information(folder, tmp_path / "x.gguf")
    again = information(tmp_path / "x.gguf", tmp_path / "y.gguf", quantize="q8_0")
    told = {key for key in first if key.startswith("general.")} - {"general.file_type"}
    assert {key: again[key] for key in told} == {key: first[key] for key in told}
    assert delivery.verify(tmp_path / "x.gguf", against=folder).ok


@pytest.mark.parametrize(
    "content",
    [
        {"general.architecture": "llama"}, {"general.tags": "text"}, {"llama.block_count": 3},
        {"general.sampling.temp": "hot"},
    ],
    ids=lambda content: next(iter(content)),
)  # fmt: skip
def test_a_key_that_is_not_information_is_refused(folder: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "more.json").write_text(json.dumps(content))
    with pytest.raises(CrossdockError, match="not a key of information"):
        delivery.export(folder, tmp_path / "x.gguf", to="gguf", metadata=tmp_path / "more.json")


@pytest.mark.parametrize(
    "card",
    ["---\na: [\n---\n", "---\n<<: {a: b}\n---\n", "no front matter", "---\n- a\n---\n", "---\nlicense: 3\n---\n"],
)
def test_a_damaged_card_costs_nothing(folder: Path, tmp_path: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    got = information(folder, tmp_path / "x.gguf")
    assert "general.license" not in got
    (folder / "README.md").write_text(CARD)
