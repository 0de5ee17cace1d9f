"""Every kind of tokenizer, through our GGUF keys into llama.cpp, against the library that owns the kind."""

from __future__ import annotations

import base64
import copy
import io
from pathlib import Path
from typing import Any

import llama_vocab
import pytest
import sentencepiece
from tokenizer_samples import (
    CORPUS,
    HARD_TEXTS,
    byte_level,
    component,
    hard_texts,
    save,
    train_bpe,
)

import tokenizers as hf
from crossdock.tokenizers.gguf_metadata import gguf_differences, gguf_metadata
from crossdock.tokenizers.pre_tokenizers import table
from crossdock.tokenizers.reading import read as read_tokenizer

KJV = CORPUS.parent / "tiny-kjv"
LLAMA3 = {row.name: row for row in table().rows}["llama-bpe"].stages[0][0]
QWEN2 = {row.name: row for row in table().rows}["qwen2"].stages[0][0]


def in_llama(folder: Path, texts: list[str], vocab_size: int | None = None, **flags: bool) -> llama_vocab.Vocab:
    """Our keys for the tokenizer in `folder`, loaded by llama.cpp, with `texts` tokenized."""
    read = read_tokenizer(folder)
    size = vocab_size or len(read.tokens)
    path = llama_vocab.write_vocab(folder / "vocab.gguf", gguf_metadata(read, vocab_size=size))
    answer = llama_vocab.ask(path, texts, **flags)
    assert not answer.error, answer.error
    return answer


def by_hf(folder: Path, texts: list[str], add_special: bool = False) -> list[list[int]]:
    tokenizer = hf.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=add_special).ids for text in texts]


def differing(texts: list[str], one: list[list[int]], other: list[list[int]]) -> list[tuple[Any, ...]]:
    return [(text, a, b) for text, a, b in zip(texts, one, other, strict=True) if a != b]


@pytest.mark.parametrize(
    ("stages", "ignore_merges", "name"),
    [
        ([byte_level(use_regex=True)], False, "gpt-2"),
        ([component(LLAMA3), byte_level()], True, "llama-bpe"),
        ([component(QWEN2), byte_level()], False, "qwen2"),
    ],
)
def test_byte_level_bpe(tmp_path: Path, stages: list[dict[str, Any]], ignore_merges: bool, name: str) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    trained = train_bpe(stages, special=special)
    trained["model"]["ignore_merges"] = ignore_merges
    save(tmp_path, tokenizer_json=trained, tokenizer_config_json={"eos_token": "<|im_end|>"})
    texts = hard_texts(special)
    answer = in_llama(tmp_path, texts, vocab_size=1024)
    assert differing(texts, answer.ids, by_hf(tmp_path, texts)) == []
    pieces = [b"".join(answer.pieces[token] for token in ids).decode() for ids in answer.ids]
    assert pieces == texts
    keys = {key: value for key, _, value in gguf_metadata(read_tokenizer(tmp_path), vocab_size=1024)}
    assert keys["tokenizer.ggml.pre"] == name
    assert len(answer.pieces) == 1024
    assert answer.special["eos"] == 702
    assert "GENERATION QUALITY" not in answer.log


def test_each_row_of_the_table(tmp_path: Path) -> None:
    """Each spelling leads to its row, and llama.cpp under that name splits as huggingface/tokenizers does."""
    texts = hard_texts()
    trained = train_bpe([byte_level(use_regex=True)], size=900)
    jobs, expected, labels = [], [], []
    for row in table().rows:
        for index, stages in enumerate(row.stages):
            one = copy.deepcopy(trained)
            parts = [*(component(stage) for stage in stages), byte_level()]
            one["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
            one["model"]["ignore_merges"] = row.ignore_merges
            folder = save(tmp_path / f"{row.name}-{index}", tokenizer_json=one)
            read = read_tokenizer(folder)
            assert read.splits == stages
            metadata = gguf_metadata(read, vocab_size=1000, pre=row.name)
            jobs.append((llama_vocab.write_vocab(folder / "vocab.gguf", metadata), texts))
            expected.append(by_hf(folder, texts))
            labels.append((row, folder.name))
    answers = llama_vocab.ask_many(jobs)
    wrong = {}
    for (row, label), ids, answer in zip(labels, expected, answers, strict=True):
        assert not answer.error, (label, answer.error)
        found = differing(texts, answer.ids, ids)
        if found and not row.differs:
            wrong[label] = found[0]
        if row.differs:
            assert found, f"{label} no longer differs: drop the remark"
            assert len(found) <= 2, (label, found)
    assert wrong == {}


def test_demo_tokenizer() -> None:
    """The demonstration model's; ignore_merges is off, and merging shows that it does not matter."""
    read = read_tokenizer(KJV)
    assert (read.kind, read.end_tokens, read.special) == ("bpe", (1,), {"bos": 0, "eos": 1})
    keys = {key: value for key, _, value in gguf_metadata(read, vocab_size=1000)}
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"


def test_demo_tokenizer_in_llama(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((KJV / name).read_bytes())
    texts = hard_texts(("<|begin_of_text|>", "<|end_of_text|>"))
    answer = in_llama(tmp_path, texts)
    assert differing(texts, answer.ids, by_hf(tmp_path, texts)) == []
    assert answer.end_tokens == [1]


def train_sentencepiece(**options: Any) -> bytes:
    model = io.BytesIO()
    defaults = {
        "sentence_iterator": iter(CORPUS.read_text(encoding="utf-8").splitlines()),
        "model_writer": model,
        "vocab_size": 900,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(**{**defaults, **options})
    return model.getvalue()


def by_sentencepiece(model: bytes, texts: list[str]) -> list[list[int]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.encode(text) for text in texts]


# sentencepiece stops at a NUL character, and llama.cpp takes it as a byte.
SENTENCEPIECE_TEXTS = [text for text in HARD_TEXTS if "\x00" not in text]


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentencepiece_bpe(tmp_path: Path, dummy_prefix: bool) -> None:
    """As Llama 2 and Mistral were trained: no normalization, byte fallback, digits split, spaces kept."""
    model = train_sentencepiece(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        add_dummy_prefix=dummy_prefix,
        user_defined_symbols=[] if dummy_prefix else ["<|tool|>", "▁▁▁▁"],
    )
    save(tmp_path, tokenizer_model=model)
    texts = [*SENTENCEPIECE_TEXTS, *CORPUS.read_text(encoding="utf-8").splitlines()]
    texts += [] if dummy_prefix else ["one<|tool|>two <|tool|> three"]
    answer = in_llama(tmp_path, texts, vocab_size=960, parse_special=False)
    assert differing(texts, answer.ids, by_sentencepiece(model, texts)) == []
    assert read_tokenizer(tmp_path).differences == ()
    assert (answer.special["bos"], answer.special["eos"], answer.special["add_bos"]) == (1, 2, 1)


def equal_scores(model: bytes, one: list[int], other: list[int]) -> bool:
    """Whether two segmentations are equally likely: sentencepiece adds in float32, llama.cpp in float64."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    score = [sum(processor.get_score(token) for token in ids) for ids in (one, other)]
    return len(one) == len(other) and abs(score[0] - score[1]) < 1e-4


def test_unigram(tmp_path: Path) -> None:
    """With the trainer's default normalization (NFKC) and collapsed spaces, as T5 and XLM-R have them."""
    model = train_sentencepiece(model_type="unigram")
    save(tmp_path, tokenizer_model=model)
    texts = [*SENTENCEPIECE_TEXTS, *CORPUS.read_text(encoding="utf-8").splitlines()]
    answer = in_llama(tmp_path, texts, vocab_size=960, parse_special=False)
    found = differing(texts, answer.ids, by_sentencepiece(model, texts))
    assert [text for text, ours, theirs in found if not equal_scores(model, ours, theirs)] == []
    assert len(found) <= 2
    assert read_tokenizer(tmp_path).differences == ()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_user_defined_tokens(tmp_path: Path, kind: str) -> None:
    """llama.cpp puts a space before each part of a text that such a token cuts; we say so."""
    model = train_sentencepiece(
        model_type=kind,
        user_defined_symbols=["<|tool|>"],
        byte_fallback=kind == "bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    save(tmp_path, tokenizer_model=model)
    texts = ["one<|tool|>two"]
    assert in_llama(tmp_path, texts, parse_special=False).ids != by_sentencepiece(model, texts)
    assert "user-defined tokens" in gguf_differences(read_tokenizer(tmp_path))[0].what


def test_unigram_that_keeps_spaces(tmp_path: Path) -> None:
    """Equal but for text of nothing but spaces, before which llama.cpp puts no further space."""
    model = train_sentencepiece(
        model_type="unigram", normalization_rule_name="identity", remove_extra_whitespaces=False
    )
    save(tmp_path, tokenizer_model=model)
    answer = in_llama(tmp_path, SENTENCEPIECE_TEXTS, parse_special=False)
    found = differing(SENTENCEPIECE_TEXTS, answer.ids, by_sentencepiece(model, SENTENCEPIECE_TEXTS))
    assert [text for text, _, _ in found] == [" ", "  "]


def test_unigram_without_leading_space(tmp_path: Path) -> None:
    """llama.cpp cannot collapse spaces without adding one in front: we keep runs, and say so."""
    model = train_sentencepiece(model_type="unigram", add_dummy_prefix=False)
    save(tmp_path, tokenizer_model=model)
    texts = [" ".join(text.split()) for text in SENTENCEPIECE_TEXTS]
    answer = in_llama(tmp_path, texts, parse_special=False)
    found = differing(texts, answer.ids, by_sentencepiece(model, texts))
    assert [text for text, ours, theirs in found if not equal_scores(model, ours, theirs)] == []
    said = gguf_differences(read_tokenizer(tmp_path))
    assert [problem.what for problem in said] == [
        "llama.cpp cannot collapse runs of spaces without a space before the text: runs are kept"
    ]


def as_llama2_json(model: bytes, *, byte_fallback: bool = True) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece BPE model, as transformers' SentencePieceExtractor has it."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(number) for number in range(len(processor))]
    ids = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    added = [
        {"id": number, "content": pieces[number], "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number in range(3)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        "pre_tokenizer": None,
        "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "vocab": ids,
            "merges": [list(pair) for pair in merges],
        },
    }


@pytest.fixture(scope="module")
def llama2() -> bytes:
    return train_sentencepiece(
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )


def test_sentencepiece_bpe_in_tokenizer_json(tmp_path: Path, llama2: bytes) -> None:
    """Without tokenizer.model: the scores come from the merges."""
    save(tmp_path, tokenizer_json=as_llama2_json(llama2))
    texts = [*SENTENCEPIECE_TEXTS, *CORPUS.read_text(encoding="utf-8").splitlines()]
    answer = in_llama(tmp_path, texts, parse_special=False)
    assert differing(texts, answer.ids, by_sentencepiece(llama2, texts)) == []
    assert differing(texts, answer.ids, by_hf(tmp_path, texts)) == []
    assert answer.special["add_bos"] == 1


def test_both_files_of_llama2(tmp_path: Path, llama2: bytes) -> None:
    save(tmp_path, tokenizer_json=as_llama2_json(llama2), tokenizer_model=llama2)
    read = read_tokenizer(tmp_path)
    alone = read_tokenizer(tmp_path / "tokenizer.model")
    assert (read.tokens, read.scores[3:]) == (alone.tokens, alone.scores[3:])
    assert read.types[:4] == (2, 3, 3, 6)
    assert (read.add_bos, read.add_eos, alone.add_bos) == (True, False, None)
    assert [path.name for path in read.sources] == ["tokenizer.json", "tokenizer.model"]


def test_special_tokens_around_text(tmp_path: Path) -> None:
    """add_bos and add_eos as the post-processor says, in llama.cpp as in huggingface/tokenizers."""
    special = ("<|begin|>", "<|stop|>")
    trained = train_bpe([byte_level(use_regex=True)], special=special)
    begin, stop = len(trained["model"]["vocab"]), len(trained["model"]["vocab"]) + 1
    trained["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|stop|>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]}
            for text, number in zip(special, (begin, stop), strict=True)
        },
    }
    save(tmp_path, tokenizer_json=trained)
    texts = ["Hello there", "", "one<|stop|>two"]
    answer = in_llama(tmp_path, texts, add_special=True)
    assert answer.ids == by_hf(tmp_path, texts, add_special=True)
    assert (answer.special["bos"], answer.special["eos"], answer.end_tokens) == (begin, stop, [stop])


def test_unigram_tokenizer_json(tmp_path: Path) -> None:
    """As T5's: Metaspace, a precompiled charsmap, spaces split away."""
    model = train_sentencepiece(model_type="unigram")
    save(tmp_path / "model", tokenizer_model=model)
    read = read_tokenizer(tmp_path / "model")
    charsmap = base64.b64encode(read.charsmap).decode()
    special = [
        {"id": number, "content": read.tokens[number], "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number in range(3)
    ]
    save(
        tmp_path,
        tokenizer_json={
            "version": "1.0",
            "added_tokens": special,
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "WhitespaceSplit"},
                    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
                ],
            },
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "Unigram",
                "unk_id": 0,
                "vocab": [list(pair) for pair in zip(read.tokens, read.scores, strict=True)],
            },
        },
        tokenizer_config_json={"eos_token": "</s>", "unk_token": "<unk>"},
    )
    texts = [*SENTENCEPIECE_TEXTS, *CORPUS.read_text(encoding="utf-8").splitlines()]
    answer = in_llama(tmp_path, texts, parse_special=False)
    found = differing(texts, answer.ids, by_hf(tmp_path, texts))
    wrong = [text for text, ours, theirs in found if not equal_scores(model, ours, theirs)]
    # huggingface/tokenizers normalizes whole grapheme clusters and so loses stacked marks, and splits at
    # U+0085; llama.cpp does as sentencepiece does.
    assert [text for text in wrong if "\u0301\u0301" not in text and "\u0085" not in text] == []
    assert differing(texts, answer.ids, in_llama(tmp_path / "model", texts, parse_special=False).ids) == []
    alone = read_tokenizer(tmp_path)
    assert (alone.kind, alone.charsmap, alone.special["unk"]) == ("unigram", read.charsmap, 0)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    keys = [("tokenizer.ggml.model", "string", "none"), ("llama.vocab_size", "uint32", 77)]
    path = llama_vocab.write_vocab(tmp_path / "none.gguf", keys)
    answer = llama_vocab.ask(path)
    assert not answer.error, answer.error
    assert answer.size == 77


def test_sentencepiece_bpe_without_byte_tokens(tmp_path: Path) -> None:
    """llama.cpp ends its process at a character outside such a vocabulary; we say so."""
    model = train_sentencepiece(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False)
    read = read_tokenizer(save(tmp_path, tokenizer_model=model))
    path = llama_vocab.write_vocab(tmp_path / "v.gguf", gguf_metadata(read, vocab_size=960))
    assert llama_vocab.ask(path, ["light"]).ids == by_sentencepiece(model, ["light"])
    assert "out_of_range" in llama_vocab.ask(path, ["\U00013000"]).error
    assert "aborts on characters" in gguf_differences(read)[0].what
