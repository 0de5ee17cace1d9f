"""What is read from the files of a tokenizer, and what is written for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_vocab
import pytest
from tokenizer_samples import HARD_TEXTS, byte_level, component, save, train_bpe

import tokenizers as hf
from crossdock.errors import FormatError, TokenizerError
from crossdock.tokenizers.files import find
from crossdock.tokenizers.gguf_metadata import gguf_differences, gguf_metadata
from crossdock.tokenizers.merging import unreached
from crossdock.tokenizers.pre_tokenizers import table
from crossdock.tokenizers.reading import read as read_tokenizer
from crossdock.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def gpt2() -> dict[str, Any]:
    return train_bpe([byte_level(use_regex=True)], size=400, special=("<|endoftext|>", "<|im_end|>", "<stop>"))


def metadata(tokenizer: Tokenizer, vocab_size: int, pre: str | None = None) -> dict[str, Any]:
    return {key: value for key, _, value in gguf_metadata(tokenizer, vocab_size=vocab_size, pre=pre)}


def test_all_that_travels(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    travelling = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    ]
    (tmp_path / "additional_chat_templates").mkdir()
    for name in (*travelling, "generation_config.json", "config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text("{}")
    found = find(tmp_path)
    assert sorted(name for name, _ in found.companion_files) == sorted(travelling)
    assert all(path == tmp_path / name for name, path in found.companion_files)
    assert [path.name for path in found.model_configs] == ["generation_config.json", "config.json"]


def test_a_named_file_wins_over_what_lies_beside_it(tmp_path: Path) -> None:
    for name in (
        "tokenizer.json",
        "tokenizer.model",
        "gpt2-vocab.json",
        "gpt2-merges.txt",
        "chat_template.jinja",
    ):
        (tmp_path / name).write_text("{}")
    found = find(tmp_path / "gpt2-vocab.json")
    assert {name: path.name for name, path in found.companion_files} == {
        "vocab.json": "gpt2-vocab.json",
        "merges.txt": "gpt2-merges.txt",
        "chat_template.jinja": "chat_template.jinja",
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "a vocabulary is missing"),
        (["vocab.json"], "merges.txt beside it is missing"),
        (["tokenizer_config.json"], "a vocabulary is missing"),
    ],
)
def test_no_tokenizer(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(TokenizerError, match=said) as caught:
        find(tmp_path)
    assert "--tokenizer" in caught.value.problems[0].fix


def test_merges_as_strings_and_as_pairs(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in gpt2["model"]["merges"]]
    strings = [" ".join(pair) for pair in pairs]
    one = save(tmp_path / "a", tokenizer_json={**gpt2, "model": {**gpt2["model"], "merges": pairs}})
    two = save(tmp_path / "b", tokenizer_json={**gpt2, "model": {**gpt2["model"], "merges": strings}})
    assert read_tokenizer(one).merges == read_tokenizer(two).merges == tuple(strings)


def test_vocab_json_and_merges_txt(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    """GPT-2's two files, with the end token inside the vocabulary."""
    vocab = {**gpt2["model"]["vocab"], "<|endoftext|>": 400}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in gpt2["model"]["merges"]]
    folder = save(tmp_path, vocab_json=vocab, merges_txt="#version: 0.2\n" + "\n".join(merges) + "\n")
    read = read_tokenizer(folder)
    assert (read.special, read.end_tokens, read.types[400]) == ({"bos": 400, "eos": 400}, (400,), 3)
    assert read.merges == tuple(merges)
    path = llama_vocab.write_vocab(tmp_path / "v.gguf", gguf_metadata(read, vocab_size=448))
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    slow = hf.Tokenizer(hf.models.BPE(vocab=vocab, merges=pairs))
    slow.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    answer = llama_vocab.ask(path, HARD_TEXTS)
    assert answer.ids == [slow.encode(text).ids for text in HARD_TEXTS]
    assert answer.special["bos"] == 400


def test_qwen2_class_of_vocab_json(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    files: dict[str, Any] = {
        "vocab_json": gpt2["model"]["vocab"],
        "merges_txt": "\n".join(m if isinstance(m, str) else " ".join(m) for m in gpt2["model"]["merges"]),
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"400": {"content": "<|im_end|>"}}}
    read = read_tokenizer(save(tmp_path, tokenizer_config_json={**config, "eos_token": "<|im_end|>"}, **files))
    assert metadata(read, 512)["tokenizer.ggml.pre"] == "qwen2"
    assert (read.tokens[400], read.types[400], read.end_tokens) == ("<|im_end|>", 3, (400,))
    save(tmp_path, tokenizer_config_json={"tokenizer_class": "OwnTokenizer"})
    with pytest.raises(TokenizerError, match="OwnTokenizer"):
        read_tokenizer(tmp_path)


def test_padding_and_rows_missing(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    gpt2 = {**gpt2, "added_tokens": [{**gpt2["added_tokens"][0], "id": 405}]}
    read = read_tokenizer(save(tmp_path, tokenizer_json=gpt2))
    assert read.tokens[400:] == ("[PAD400]", "[PAD401]", "[PAD402]", "[PAD403]", "[PAD404]", "<|endoftext|>")
    assert read.types[400:] == (5, 5, 5, 5, 5, 3)
    keys = metadata(read, 408)
    assert keys["tokenizer.ggml.tokens"][404:] == ["[PAD404]", "<|endoftext|>", "[PAD406]", "[PAD407]"]
    assert keys["tokenizer.ggml.token_type"][404:] == [5, 3, 5, 5]
    with pytest.raises(TokenizerError) as caught:
        gguf_metadata(read, vocab_size=404)
    (problem,) = caught.value.problems
    assert problem.what == "the tokenizer has 2 tokens beyond the model's embedding"
    assert "405 '<|endoftext|>'" in problem.got
    assert str(tmp_path / "tokenizer.json") in problem.where


def test_duplicate_texts(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    added = [*gpt2["added_tokens"], {**gpt2["added_tokens"][0], "id": 403, "content": "Ġthe"}]
    read = read_tokenizer(save(tmp_path, tokenizer_json={**gpt2, "added_tokens": added}))
    with pytest.raises(TokenizerError, match="more than one id") as caught:
        gguf_metadata(read, vocab_size=512)
    number = gpt2["model"]["vocab"]["Ġthe"]
    assert caught.value.problems[0].got == f"'Ġthe' = [{number}, 403]"
    # llama.cpp is why: it must not load such a file.
    keys = gguf_metadata(replace(read, tokens=(*read.tokens[:403], "other")), vocab_size=512)
    keys = [(key, kind, list(read.tokens) if key.endswith(".tokens") else value) for key, kind, value in keys]
    assert llama_vocab.ask(llama_vocab.write_vocab(tmp_path / "v.gguf", keys)).error


def test_types_of_added_tokens(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    texts = {"<s>": True, "<tool>": False, "<|looks|>": False, "<pad>": False, "    ": False}
    added = [
        {**gpt2["added_tokens"][0], "id": 400 + n, "content": text, "special": special}
        for n, (text, special) in enumerate(texts.items())
    ]
    config = {"eos_token": {"content": "<s>"}, "pad_token": "<pad>", "additional_special_tokens": ["<tool>"]}
    folder = save(tmp_path, tokenizer_json={**gpt2, "added_tokens": added}, tokenizer_config_json=config)
    read = read_tokenizer(folder)
    assert read.types[400:] == (3, 3, 3, 3, 4)
    assert read.special == {"eos": 400, "pad": 403}
    keys = metadata(read, 405)
    assert (keys["tokenizer.ggml.padding_token_id"], keys["tokenizer.ggml.bos_token_id"]) == (403, 400)


def test_all_end_tokens(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    """generation_config.json names more of them; llama.cpp stops at each."""
    config, ends = {"eos_token": "<|im_end|>"}, {"eos_token_id": [400, 401, 402]}
    save(tmp_path, tokenizer_json=gpt2, tokenizer_config_json=config, generation_config_json=ends)
    read = read_tokenizer(tmp_path)
    assert read.end_tokens == (401, 400, 402)
    path = llama_vocab.write_vocab(tmp_path / "v.gguf", gguf_metadata(read, vocab_size=448))
    assert llama_vocab.ask(path).end_tokens == [400, 401, 402]
    keys = metadata(read, 448)
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (401, 402)


def test_more_end_tokens_than_gguf_holds(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    save(tmp_path, tokenizer_json=gpt2, generation_config_json={"eos_token_id": [402, 33, 34, 35]})
    with pytest.raises(TokenizerError, match="would be lost") as caught:
        gguf_metadata(read_tokenizer(tmp_path), vocab_size=448)
    assert caught.value.problems[0].got.startswith("35 ")


def test_end_token_outside_the_vocabulary(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    save(tmp_path, tokenizer_json=gpt2, generation_config_json={"eos_token_id": [400, 500]})
    with pytest.raises(TokenizerError, match="eos token 500 is not in the tokenizer"):
        gguf_metadata(read_tokenizer(tmp_path), vocab_size=448)


def test_end_token_unknown(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    """llama.cpp's default would be the ordinary token 11."""
    bare = {**gpt2, "added_tokens": []}
    read = read_tokenizer(save(tmp_path, tokenizer_json=bare))
    with pytest.raises(TokenizerError, match="no end token is known"):
        gguf_metadata(read, vocab_size=400)
    path = llama_vocab.write_vocab(tmp_path / "v.gguf", gguf_metadata(read, vocab_size=448))
    answer = llama_vocab.ask(path)
    assert (answer.end_tokens, answer.special["add_bos"]) == ([447], 0)


def test_end_token_by_its_text(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    """Without a configuration llama.cpp stops at <|endoftext|> anyway, so it is written."""
    read = read_tokenizer(save(tmp_path, tokenizer_json=gpt2))
    assert metadata(read, 448)["tokenizer.ggml.eos_token_id"] == 400


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({"chat_template": "A"}, {}, {"": "A"}),
        ({"chat_template": "A"}, {"chat_template_jinja": "B"}, {"": "B"}),
        (
            {"chat_template": [{"name": "default", "template": "A"}, {"name": "tool-use", "template": "T"}]},
            {},
            {"": "A", ".tool_use": "T", "s": ["tool_use"]},
        ),
        ({}, {}, {}),
    ],
)
def test_chat_templates(
    tmp_path: Path,
    gpt2: dict[str, Any],
    config: dict[str, Any],
    files: dict[str, str],
    expected: dict[str, Any],
) -> None:
    folder = save(tmp_path, tokenizer_json=gpt2, tokenizer_config_json=config, **files)
    keys = metadata(read_tokenizer(folder), 448)
    found = {k.removeprefix("tokenizer.chat_template"): v for k, v in keys.items() if "chat_template" in k}
    assert found == expected


def test_unknown_pattern(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    own = {"type": "Sequence", "pretokenizers": [component(r"split \w+|\W"), byte_level()]}
    read = read_tokenizer(save(tmp_path, tokenizer_json={**gpt2, "pre_tokenizer": own}))
    with pytest.raises(TokenizerError) as caught:
        gguf_metadata(read, vocab_size=448)
    (problem,) = caught.value.problems
    assert problem.got == r"split \w+|\W"
    assert problem.fix.startswith("--pre-tokenizer NAME")
    assert "--pre-tokenizer list" in problem.fix
    assert metadata(read, 448, "gpt-2")["tokenizer.ggml.pre"] == "gpt-2"
    assert "not the tokenizer's own" in gguf_differences(read, pre="gpt-2")[0].what
    with pytest.raises(TokenizerError, match=r"llama\.cpp has no pre-tokenizer 'gpt2'"):
        gguf_metadata(read, vocab_size=448, pre="gpt2")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)], "starcoder"),
        ([component(r"split \p{N}"), byte_level(use_regex=True)], "starcoder"),
        ([{**component("split " + table().rows[0].stages[0][0][6:]), "invert": True}, byte_level()], "gpt-2"),
    ],
)
def test_the_structure_counts_not_the_spelling(
    tmp_path: Path, gpt2: dict[str, Any], parts: list[dict[str, Any]], expected: str
) -> None:
    one = {**gpt2, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}
    assert metadata(read_tokenizer(save(tmp_path, tokenizer_json=one)), 448)["tokenizer.ggml.pre"] == expected


def test_ignore_merges_decides_between_equal_patterns(tmp_path: Path) -> None:
    """A token that merging cannot reach makes the difference, and then the other name is taken."""
    pattern = next(row for row in table().rows if row.name == "llama-bpe").stages[0][0]
    trained = train_bpe([component(pattern), byte_level()], size=400)
    assert metadata(read_tokenizer(save(tmp_path, tokenizer_json=trained)), 448)["tokenizer.ggml.pre"] == "llama-bpe"
    trained["model"]["vocab"] |= {"qqqq": 400}
    trained["added_tokens"][0]["id"] = 401
    read = read_tokenizer(save(tmp_path, tokenizer_json=trained))
    assert unreached(read.tokens[:401], read.merges) == ["qqqq"]
    assert metadata(read, 448)["tokenizer.ggml.pre"] == "smaug-bpe"
    assert metadata(replace(read, ignore_merges=True), 448)["tokenizer.ggml.pre"] == "llama-bpe"
    gpt2 = replace(read, splits=table().rows[0].stages[0], ignore_merges=True)
    with pytest.raises(TokenizerError, match="treats whole words otherwise"):
        gguf_metadata(gpt2, vocab_size=448)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "does not change text before byte-level BPE"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "this kind of model cannot be carried over"),
        (
            {"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}},
            "end_of_word_suffix",
        ),
        ({"pre_tokenizer": None, "decoder": None}, "neither byte-level nor in SentencePiece's style"),
    ],
)
def test_what_cannot_be_carried_over(tmp_path: Path, gpt2: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said):
        read_tokenizer(save(tmp_path, tokenizer_json={**gpt2, **change}))


def test_differences_are_said(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    added = [{**gpt2["added_tokens"][0], "lstrip": True}]
    change = {"normalizer": {"type": "NFC"}, "pre_tokenizer": {**byte_level(True), "add_prefix_space": True}}
    read = read_tokenizer(save(tmp_path, tokenizer_json={**gpt2, **change, "added_tokens": added}))
    said = " ".join(problem.what for problem in gguf_differences(read))
    assert "(NFC)" in said
    assert "lstrip of added tokens: '<|endoftext|>'" in said
    assert "add_prefix_space" in said


def test_merges_that_scores_cannot_stand_for(tmp_path: Path) -> None:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    vocab = {text: number for number, text in enumerate(["<unk>", "a", "b", "c", "ab", "bc", "abc"])}
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": ["a b", "b c", "ab c"]}
    data = {"normalizer": space, "added_tokens": [], "model": model}
    with pytest.raises(TokenizerError, match="'a' and 'bc' join without a merge"):
        read_tokenizer(save(tmp_path, tokenizer_json=data))
    model["merges"] = ["a b", "b c", "ab c", "a bc"]
    assert read_tokenizer(save(tmp_path, tokenizer_json=data)).scores[4:] == (-1.0, -2.0, -3.0)


def test_named_tokens_that_do_not_exist(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    save(tmp_path, tokenizer_json=gpt2, tokenizer_config_json={"pad_token": "<nothing>"})
    said = read_tokenizer(tmp_path).differences
    assert [problem.what for problem in said] == ["pad_token '<nothing>' is not in the vocabulary"]
    save(tmp_path, tokenizer_config_json={"eos_token": "<nothing>"})
    with pytest.raises(FormatError, match="the end token is not in the vocabulary"):
        read_tokenizer(tmp_path)


def test_a_model_configuration_with_infinity(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    save(tmp_path, tokenizer_json=gpt2, config_json='{"time_step_limit": [0.0, Infinity], "eos_token_id": 402}')
    assert read_tokenizer(tmp_path).end_tokens == (402,)


def test_end_texts_that_llama_knows_besides(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    folder = save(tmp_path, tokenizer_json=gpt2, tokenizer_config_json={"eos_token": "<|endoftext|>"})
    read = read_tokenizer(folder)
    assert "'<|im_end|>'" in gguf_differences(read)[0].what
    path = llama_vocab.write_vocab(tmp_path / "v.gguf", gguf_metadata(read, vocab_size=448))
    assert llama_vocab.ask(path).end_tokens == [400, 401]


def test_a_pre_tokenizer_name_means_nothing_to_sentencepiece(tmp_path: Path) -> None:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": {"<unk>": 0, "</s>": 1, "a": 2}, "merges": []}
    data = {
        "normalizer": space,
        "added_tokens": [{"id": 1, "content": "</s>", "special": True}],
        "model": model,
    }
    read = read_tokenizer(save(tmp_path, tokenizer_json=data))
    assert metadata(read, 4)["tokenizer.ggml.pre"] == "default"
    with pytest.raises(TokenizerError, match="only byte-level BPE has a pre-tokenizer"):
        gguf_metadata(read, vocab_size=4, pre="gpt-2")


def test_an_ordinary_token_that_pads_stays_ordinary(tmp_path: Path, gpt2: dict[str, Any]) -> None:
    config = {"pad_token": "!", "eos_token": "<stop>"}
    ids = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": [402, 5]}
    save(tmp_path, tokenizer_json=gpt2, tokenizer_config_json=config, generation_config_json=ids)
    read = read_tokenizer(tmp_path)
    number = gpt2["model"]["vocab"]["!"]
    assert read.special == {"eos": 402, "pad": number, "bos": 3}
    assert (read.types[number], read.types[3], read.types[5], read.types[402]) == (1, 1, 1, 3)
