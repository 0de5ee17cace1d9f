"""Mistakes of a first `verify` or `diff`: exit code, the sentence that names the way out, and nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import crossdock
from crossdock.cli import main

ROOT = Path(__file__).resolve().parents[2]
KJV, TOKENIZER = ROOT / "examples" / "tiny-kjv", ROOT / "examples" / "tiny-kjv-tokenizer"

MISTAKES = {
    "swapped": (("verify", KJV, "--against", "mute.gguf"), 2, "pass the output first"),
    "no such output": (("verify", "no.gpuidx", "--against", ROOT / "tests/data/powerinfer/u4x1024_i64"), 3,
                       "no.gpuidx: path does not exist"),
    "one file of a folder": (("verify", "hf/model.safetensors", "--against", KJV), 3, "to do: pass "),
    "one file of ranks": (("diff", "trt/rank0.safetensors", KJV), 3, "to do: pass the folder: "),
    "an adapter": (("diff", "adapter", KJV), 3, "adapter_config.json without adapter_model.safetensors"),
    "a folder for a report": (("verify", "mute.gguf", "--against", KJV, "--report", "."), 2, "--report report.html"),
    "no folder for a report": (("verify", "hf", "--against", KJV, "--report", "none/x.html"), 4, "does not exist"),
    "a model for a report": (("verify", "mute.gguf", "--against", KJV, "--report", "mute.gguf"), 2, "another name"),
    "no such text": (("verify", "mute.gguf", "--against", KJV, "--logits", "@none.txt"), 3, "none.txt: cannot be read"),
    "negative ids": (("verify", "mute.gguf", "--against", KJV, "--logits", "1,-2"), 2, "expected 0 to 999, got [-2]"),
    "text without tokenizer": (("verify", "mute.gguf", "--against", KJV, "--logits", "a b"), 3, "has no tokenizer"),
    "ids without tokenizer": (("verify", "mute.gguf", "--against", KJV, "--tokenizer", TOKENIZER, "--tokens"), 3,
                              "has no tokenizer"),
    "an engine without text": (("verify", "mute.gguf", "--against", KJV, "--logits-engine", "llama.cpp"), 2,
                               "--logits"),
    "no such engine": (("verify", "mute.gguf", "--against", KJV, "--logits", "1,2", "--logits-engine", "llama"), 2,
                       "expected llama.cpp, transformers, onnxruntime"),
    "another engine's format": (("verify", "hf", "--against", KJV, "--logits", "1,2", "--logits-engine", "llama.cpp"),
                                2,
                                "expected *.gguf"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exports of the example, none of which has a tokenizer."""
    folder = tmp_path_factory.mktemp("outputs")
    for name, to in (("mute.gguf", "gguf"), ("hf", "hf"), ("trt", "trtllm")):
        crossdock.export(KJV, folder / name, to, dtype="bfloat16")
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, code, said = MISTAKES[mistake]
    monkeypatch.chdir(outputs)
    before = {path: path.stat().st_size for path in outputs.rglob("*")}
    result = CliRunner().invoke(main, [str(word) for word in (*words, "--no-progress")])
    assert result.exit_code == code, result.stderr
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert {path: path.stat().st_size for path in outputs.rglob("*")} == before


def test_a_text_that_another_model_reads(tmp_path: Path) -> None:
    """Ids beyond the vocabulary name the tokenizer that gave them."""
    from support import hf_models

    folder = hf_models.make_hf("llama", tmp_path / "hf")
    words = ("verify", folder, "--against", folder, "--tokenizer", TOKENIZER, "--logits", "In the beginning")
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2
    assert "a tokenizer of another model" in result.stderr


def test_a_report_is_written_again(outputs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for _ in range(2):
        crossdock.verify(outputs / "hf", KJV, report=page)
    assert page.read_text(encoding="utf-8").endswith("</html>\n")
