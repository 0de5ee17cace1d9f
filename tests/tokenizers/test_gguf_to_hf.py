"""A GGUF file's vocabulary as files of a Hugging Face folder: llama.cpp's own ids of the file against those of the
libraries that read the files, transformers, huggingface/tokenizers and sentencepiece.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import llama_vocab
import numpy as np
import pytest
import sentencepiece
from tokenizer_samples import CORPUS, HARD_TEXTS, byte_level, component, hard_texts, save, train_bpe
from transformers import AutoTokenizer

import tokenizers as hf
from crossdock.errors import CrossdockError, FormatError, TokenizerError
from crossdock.formats.gguf.container import read_header
from crossdock.formats.gguf.vocabulary import tokenizer_of
from crossdock.tokenizers.from_gguf import from_gguf
from crossdock.tokenizers.gguf_metadata import gguf_metadata
from crossdock.tokenizers.hf_files import hf_differences, hf_files
from crossdock.tokenizers.pre_tokenizers import table
from crossdock.tokenizers.reading import read as read_tokenizer

Keys = list[tuple[str, str, Any]]


def trained_spm(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=str(CORPUS), model_writer=model, vocab_size=900, character_coverage=0.99, minloglevel=2,
        hard_vocab_limit=False, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, **options,
    )  # fmt: skip
    return model.getvalue()


def written(folder: Path, keys: Keys) -> Path:
    """The files that are made from a GGUF file with these keys, in a folder of their own."""
    path = llama_vocab.write_vocab(folder / "vocab.gguf", keys)
    size = len(next(value for key, _, value in keys if key == "tokenizer.ggml.tokens"))
    for name, content in hf_files(tokenizer_of(path, size)).items():
        (folder / "hf").mkdir(exist_ok=True)
        (folder / "hf" / name).write_bytes(content)
    return path


def by_transformers(folder: Path, texts: list[str], add_special: bool = False) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, add_special_tokens=add_special)["input_ids"] for text in texts]


def differing(texts: list[str], one: list[list[int]], other: list[list[int]]) -> list[tuple[Any, ...]]:
    return [(text, a, b) for text, a, b in zip(texts, one, other, strict=True) if a != b]


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentencepiece(tmp_path: Path, dummy_prefix: bool) -> None:
    """Both files, with tokens that are matched in raw text, and special ones within it."""
    symbols = {"user_defined_symbols": ["<|tool|>", "▁▁▁▁"], "control_symbols": ["<|end|>"]}
    model = trained_spm(split_digits=True, add_dummy_prefix=dummy_prefix, **symbols)
    save(tmp_path, tokenizer_model=model)
    path = written(tmp_path, gguf_metadata(read_tokenizer(tmp_path), vocab_size=960))
    texts = hard_texts(("<|tool|>", "<|end|>", "</s>"))
    for flag in (False, True):
        answer = llama_vocab.ask(path, texts, add_special=flag)
        assert not answer.error
        assert differing(texts, answer.ids, by_transformers(tmp_path / "hf", texts, flag)) == []
    plain = [text for text in HARD_TEXTS if "\0" not in text and "   " not in text]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "hf" / "tokenizer.model"))
    assert differing(plain, llama_vocab.ask(path, plain).ids, [processor.encode(text) for text in plain]) == []
    again, first = read_tokenizer(tmp_path / "hf"), read_tokenizer(tmp_path)
    assert (again.tokens, again.end_tokens) == (first.tokens, first.end_tokens)
    assert again.add_space_prefix == dummy_prefix


def test_a_vocabulary_of_2023(tmp_path: Path, legacy: Path) -> None:
    """The key of no flag is there: llama.cpp's defaults count."""
    metadata = read_header(legacy / "support/vocab-tiny.gguf")
    keys = [(key, kind.lower(), metadata.metadata[key]) for key, kind in metadata.types.items() if "tokenizer" in key]
    path = written(tmp_path, keys)
    texts = hard_texts(("<s>",))
    answer = llama_vocab.ask(path, texts, add_special=True)
    assert differing(texts, answer.ids, by_transformers(tmp_path / "hf", texts, True)) == []
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.decode(tokenizer("the cat é")["input_ids"], skip_special_tokens=True) == "the cat é"


def test_each_pre_tokenizer(tmp_path: Path) -> None:
    """Byte-level BPE under each name of which the pattern is known; also whether a begin token is added unasked."""
    texts = hard_texts(("<|endoftext|>",))
    trained = train_bpe([byte_level(use_regex=True)], size=900)
    jobs, folders = [], []
    for row in table().rows:
        one = trained | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            *(component(stage) for stage in row.stages[0]), byte_level()]}}  # fmt: skip
        one["model"]["ignore_merges"] = row.ignore_merges
        folder = save(tmp_path / row.name, tokenizer_json=one)
        keys = gguf_metadata(read_tokenizer(folder), vocab_size=1000, pre=row.name)
        jobs.append((written(folder, [entry for entry in keys if "add_" not in entry[0]]), texts))
        folders.append((row, folder / "hf"))
    for (row, folder), answer in zip(folders, llama_vocab.ask_many(jobs), strict=True):
        assert not answer.error
        made = hf.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
        assert row.differs or differing(texts, answer.ids, ids) == [], row.name
        assert len(made.encode("a").ids) == 1 + answer.special["add_bos"], row.name


def test_byte_level_in_transformers(tmp_path: Path) -> None:
    special = ("<|endoftext|>", "<|im_end|>")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "add_bos_token": True, "chat_template": template}
    save(tmp_path, tokenizer_json=train_bpe([byte_level(True)], special=special), tokenizer_config_json=config)
    path = written(tmp_path, gguf_metadata(read_tokenizer(tmp_path), vocab_size=1024))
    texts = hard_texts(special)
    answer = llama_vocab.ask(path, texts, add_special=True)
    assert differing(texts, answer.ids, by_transformers(tmp_path / "hf", texts, True)) == []
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == (*special, template)
    assert len(tokenizer) == 702


def test_scores_that_do_not_order_the_merges(tmp_path: Path) -> None:
    save(tmp_path, tokenizer_model=trained_spm())
    keys = {key: value for key, _, value in gguf_metadata(read_tokenizer(tmp_path), vocab_size=900)}
    assert hf_differences(from_gguf(keys, "")) == ()
    keys["tokenizer.ggml.scores"] = np.full(900, -1000, np.float32)
    (said,) = hf_differences(from_gguf(keys, ""))
    assert "have the score of another one" in said


def test_what_cannot_be_said_outside_of_gguf(tmp_path: Path) -> None:
    save(tmp_path, tokenizer_json=train_bpe([byte_level(True)]))
    keys = {key: value for key, _, value in gguf_metadata(read_tokenizer(tmp_path), vocab_size=702)}
    with pytest.raises(TokenizerError, match="no known pattern"):
        from_gguf(keys | {"tokenizer.ggml.pre": "refact"}, "x")
    with pytest.raises(TokenizerError, match="of the kind 't5'"):
        from_gguf(keys | {"tokenizer.ggml.model": "t5"}, "x")
    wrong: list[dict[str, Any]] = [
        {"tokenizer.ggml.token_type": [1]}, {"tokenizer.ggml.tokens": "a"}, {"tokenizer.ggml.eos_token_id": 9999},
        {"tokenizer.ggml.merges": None}, {"tokenizer.ggml.token_type": [9] * 702},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(FormatError) as caught:
            from_gguf(keys | change, "x")
        assert isinstance(caught.value, CrossdockError)
