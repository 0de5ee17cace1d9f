"""`verify --tokens`: llama.cpp's ids of an exported file against those of the library that owns the tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from crossdock.cli import main
from oracles.rewriting import Gguf, rewrite_gguf

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tokenizers"))
from test_tokenizer_engines import train_sentencepiece  # noqa: E402
from tokenizer_samples import byte_level, save, train_bpe  # noqa: E402

KJV = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def exported(out: Path, tokenizer: Path) -> Path:
    run("export", KJV, "--to", "gguf", "--tokenizer", tokenizer, "-o", out, "--no-progress")
    return out


def report(out: Path, tokenizer: Path, code: int = 0) -> Any:
    asked = ("verify", out, "--against", KJV, "--tokenizer", tokenizer, "--tokens", "--json")
    return json.loads(run(*asked, code=code).stdout)["tokens"]


def test_byte_level_bpe(tmp_path: Path) -> None:
    out = exported(tmp_path / "kjv.gguf", TOKENIZER)
    found = report(out, TOKENIZER)
    assert found["ok"] is True
    assert found["texts"] > 38
    assert "tokenizer.json" in found["reader"]
    text = run("verify", out, "--against", KJV, "--tokenizer", TOKENIZER, "--tokens").stdout
    assert f"llama.cpp reads {found['texts']} of {found['texts']} texts as tokenizers " in text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece(kind: str, tmp_path: Path) -> None:
    like_llama = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    model = train_sentencepiece(model_type=kind, **(like_llama if kind == "bpe" else {}))
    tokenizer = save(tmp_path / "tokenizer", tokenizer_model=model)
    found = report(exported(tmp_path / "kjv.gguf", tokenizer), tokenizer)
    assert found["ok"] is True, found["different"]
    assert "sentencepiece" in found["reader"]
    assert found["ties"] <= 2


def test_another_pre_tokenizer_is_found(tmp_path: Path) -> None:
    """The ids change though the vocabulary does not."""
    trained = train_bpe([byte_level(use_regex=True)], size=900)
    tokenizer = save(tmp_path / "tokenizer", tokenizer_json=trained)
    good, bad = exported(tmp_path / "good.gguf", tokenizer), tmp_path / "bad.gguf"
    assert report(good, tokenizer)["ok"] is True

    def change(model: Gguf) -> None:
        model.set("tokenizer.ggml.pre", "qwen2")

    rewrite_gguf(good, bad, change)
    found = report(bad, tokenizer, code=1)
    assert found["ok"] is False
    digits = next(one for one in found["different"] if one["text"].startswith("0 1 12 123"))
    assert len(digits["engine"]) > len(digits["source"])  # qwen2 takes digits one by one
    text = run("verify", bad, "--against", KJV, "--tokenizer", tokenizer, "--tokens", code=1).stdout
    assert "NOT EQUAL" in text
    assert repr(found["different"][0]["text"])[:60] in text


def test_what_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = exported(tmp_path / "kjv.gguf", TOKENIZER)
    assert "no tokenizer to compare" in run("verify", out, "--against", KJV, "--tokens", code=2).stderr
    run("export", KJV, "--to", "hf", "-o", tmp_path / "hf", "--no-progress")
    asked = ("--against", KJV, "--tokenizer", TOKENIZER, "--tokens")
    assert "requires a GGUF output" in run("verify", tmp_path / "hf", *asked, code=2).stderr
    bad = tmp_path / "bad.gguf"
    rewrite_gguf(out, bad, lambda model: model.set("tokenizer.ggml.model", "nothing"))
    assert "llama.cpp does not take the model" in run("verify", bad, *asked, code=1).stderr
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    missing = run("verify", out, *asked, code=4)
    assert 'pip install "crossdock[tokens]"' in missing.stderr
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = run("verify", out, *asked, code=4)
    assert "xllamacpp" in missing.stderr
    assert 'pip install "crossdock[llama]"' in missing.stderr
