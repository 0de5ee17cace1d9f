"""A tokenizer that is damaged, or another model's, is refused for every target; what no file says is a warning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.errors import InputError
from support.hf_models import make_hf

KJV = Path(__file__).parents[1] / "data" / "tokenizers" / "tiny-kjv"
TARGETS = ("gguf", "hf", "trtllm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with the tokenizer that it was made for beside it; its configuration names no special tokens."""
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    folder = make_hf("llama", tmp_path_factory.mktemp("model"), vocab_size=1024, **ids)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(KJV / name, folder / name)
    return folder


def damaged(model: Path, folder: Path, kind: str) -> Path:
    """The model with a tokenizer that is not whole."""
    shutil.copytree(model, folder)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    if kind == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "more tokens":
        data["added_tokens"] += [{**data["added_tokens"][-1], "id": 1024 + n, "content": f"<{n}>"} for n in range(3)]
        file.write_text(json.dumps(data))
    else:
        file.write_bytes({"empty": b"", "object": b"{}", "random": bytes(range(256)) * 9}[kind])
    return folder


def planned(checkpoint: Path, target: str, **options: Any) -> crossdock.Plan:
    return crossdock.plan(crossdock.open(checkpoint), target, **options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["half", "empty", "object", "random", "more tokens"])
def test_a_damaged_tokenizer_is_refused(model: Path, tmp_path: Path, kind: str, target: str) -> None:
    """Brought along by the source, and given."""
    folder = damaged(model, tmp_path / "m", kind)
    with pytest.raises(InputError):
        planned(folder, target)
    with pytest.raises(InputError):
        planned(model, target, tokenizer=folder)


@pytest.mark.parametrize("target", TARGETS)
def test_no_end_of_text_is_said(model: Path, tmp_path: Path, target: str) -> None:
    """The token that is taken for it by its text goes into what is written."""
    folder = shutil.copytree(model, tmp_path / "m")
    (folder / "tokenizer_config.json").unlink()
    warnings = planned(folder, target).warnings
    assert any("no file names the end-of-text token; '<|end_of_text|>'" in warning for warning in warnings)
    assert not any("end-of-text" in warning for warning in planned(model, target).warnings)
    data = json.loads((folder / "tokenizer.json").read_text().replace("<|end_of_text|>", "<|x|>"))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert any("no end-of-text token is known" in warning for warning in planned(folder, target).warnings)


def test_ends_travel_from_hf_to_gguf_and_back(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6, 7]}))
    names = {name: json.loads((KJV / "tokenizer.json").read_text())["model"]["vocab"] for name in ("vocab",)}
    assert {5, 6, 7} <= set(names["vocab"].values())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    text = next(text for text, number in names["vocab"].items() if number == 5)
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": text}))
    crossdock.export(folder, tmp_path / "m.gguf", "gguf")
    crossdock.export(tmp_path / "m.gguf", tmp_path / "back", "hf")
    for name in ("generation_config.json", "config.json"):
        assert json.loads((tmp_path / "back" / name).read_text())["eos_token_id"] == [5, 6, 7]
    assert crossdock.verify(tmp_path / "back", against=tmp_path / "m.gguf").ok


def test_a_kind_that_crossdock_does_not_read_goes_along_with_a_word(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    word_piece = {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}}
    (folder / "tokenizer.json").write_text(json.dumps(word_piece))
    plan = planned(folder, "hf")
    assert any("is copied unchanged and was not compared" in warning for warning in plan.warnings)
    assert "tokenizer.json" in {file.name for file in plan.files}
