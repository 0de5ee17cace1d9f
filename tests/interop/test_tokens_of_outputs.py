"""Exported models read text as their source's tokenizer does: ids from llama.cpp against the source's own library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Answer
from tests.oracles.llama_engine import llama_tokens

import tokenizers as hf
from support.hf_models import make_hf

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tokenizers"))
from tokenizer_samples import HARD_TEXTS, byte_level, save, train_bpe  # noqa: E402


def test_a_megatron_checkpoint_with_a_tokenizer(tmp_path: Path, crossdock: Callable[..., Answer]) -> None:
    tokenizer = ROOT / "examples" / "tiny-kjv-tokenizer"
    out = tmp_path / "kjv.gguf"
    crossdock("export", ROOT / "examples/tiny-kjv", "--to", "gguf", "--tokenizer", tokenizer, "-o", out).ok()
    reader = hf.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [text for text in HARD_TEXTS if text]
    expected = [reader.encode(text, add_special_tokens=False).ids for text in texts]
    assert llama_tokens(out, texts) == expected


@pytest.mark.parametrize("quantize", [(), ("-q", "q8_0")])
def test_a_folder_brings_its_tokenizer_along(
    quantize: tuple[str, ...], tmp_path: Path, crossdock: Callable[..., Answer]
) -> None:
    """Also through hf → hf; rows beyond the tokenizer become padding."""
    trained = train_bpe([byte_level(use_regex=True)], size=600, special=("<|endoftext|>", "<|im_end|>"))
    model = make_hf("qwen2", tmp_path / "model", vocab_size=640)
    save(model, tokenizer_json=trained, tokenizer_config_json={"eos_token": "<|im_end|>"})
    save(model, chat_template_jinja="{{ messages[0].content }}")
    crossdock("export", model, "--to", "hf", "-o", tmp_path / "copy").ok()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "copy" / name).read_bytes() == (model / name).read_bytes()
    out = tmp_path / "model.gguf"
    crossdock("export", tmp_path / "copy", "--to", "gguf", *quantize, "-o", out).ok()
    reader = hf.Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [text for text in HARD_TEXTS if text]
    assert llama_tokens(out, texts) == [reader.encode(text, add_special_tokens=False).ids for text in texts]
    from gguf import GGUFReader

    fields = GGUFReader(out).fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages[0].content }}"
    assert fields["tokenizer.ggml.tokens"].contents()[639] == "[PAD639]"


def test_a_folder_from_megatron_knows_where_to_stop(tmp_path: Path, crossdock: Callable[..., Answer]) -> None:
    """Megatron's args hold no special ids: they come from the tokenizer that is given."""
    import json

    tokenizer, out = ROOT / "examples" / "tiny-kjv-tokenizer", tmp_path / "hf"
    crossdock("export", ROOT / "examples/tiny-kjv", "--to", "hf", "--tokenizer", tokenizer, "-o", out).ok()
    for name in ("config.json", "generation_config.json"):
        found = json.loads((out / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (0, 1)
    crossdock("verify", out, "--against", ROOT / "examples/tiny-kjv").ok()
    crossdock("verify", out, "--against", ROOT / "examples/tiny-kjv", "--tokenizer", tokenizer).ok()
