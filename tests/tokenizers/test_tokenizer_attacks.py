"""Tokenizer files that break their format end in a FormatError that names the file, and in nothing else."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_samples import byte_level, save, train_bpe

from crossdock.errors import FormatError, TokenizerError
from crossdock.tokenizers.files import MAX_FILE_SIZE
from crossdock.tokenizers.gguf_metadata import gguf_metadata
from crossdock.tokenizers.merging import unreached
from crossdock.tokenizers.reading import read as read_tokenizer

VOCAB = {"a": 0, "b": 1, "ab": 2}


def bpe(**model: Any) -> dict[str, Any]:
    return {
        "pre_tokenizer": byte_level(use_regex=True),
        "model": {"type": "BPE", "vocab": VOCAB, "merges": ["a b"]} | model,
    }


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    return field(1, field(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score) + varint(3 << 3) + varint(kind))


NORMALIZER = field(3, varint(3 << 3) + varint(1))
MODEL = piece(b"<unk>", kind=2) + piece(b"a") + field(2, varint(3 << 3) + varint(2)) + NORMALIZER


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(bpe())[:-20], "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"", "not valid JSON"),
        ("[" * 1_000_000, "not valid JSON"),
        ('{"model":' * 1_000_000, "not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        ("{}", "no model"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}', "key 'a' occurs twice"),
        ('{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", NaN]]}}', "entry 0"),
        ('{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e999]]}}', "entry 0"),
        ('{"model": {"type": "Unigram", "unk_id": 0, "vocab": ' + "9" * 5000 + "}}", "not valid JSON"),
        (bpe(vocab={"a": 0, "b": 0}), "id 0 belongs to two tokens: 'a' and 'b'"),
        (bpe(vocab={"a": -1}), "no usable id"),
        (bpe(vocab={"a": 10**12}), "no usable id"),
        (bpe(vocab={"a": True}), "no usable id"),
        (bpe(vocab={"a": "0"}), "no usable id"),
        (bpe(vocab=[]), "not an object"),
        (bpe(merges={}), "not a list"),
        (bpe(vocab={}, merges=[]), "the vocabulary is empty"),
        (bpe(merges=["a c"]), "merge 0 needs 'c', which is not a token"),
        (bpe(merges=["b a"]), "merge 0 needs 'ba', which is not a token"),
        (bpe(merges=["a b c"]), "merge 0 is not a pair"),
        (bpe(merges=[["a", 1]]), "merge 0 is not a pair"),
        (bpe(merges=[["a", ""]]), "merge 0 is not a pair"),
        (json.dumps(bpe(vocab={"\ud800": 0})), "not Unicode text"),
        ({**bpe(), "added_tokens": {}} | {"added_tokens": "x"}, "not a list of objects"),
        ({**bpe(), "added_tokens": [{"id": 3}]}, "has no content"),
        (
            {**bpe(), "added_tokens": [{"id": 3, "content": "x"}, {"id": 3, "content": "y"}]},
            "two added tokens",
        ),
        ({**bpe(), "pre_tokenizer": {"type": "Sequence"}, "decoder": byte_level()}, "without pretokenizers"),
        ({**bpe(), "pre_tokenizer": ["ByteLevel"]}, "not a JSON object"),
        ({**bpe(), "post_processor": {"type": "TemplateProcessing", "single": 1}}, "without single"),
        (
            {
                **bpe(),
                "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no"}}]},
            },
            "does not exist",
        ),
        ({"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}}, "outside the vocabulary"),
        ({"model": {"type": "BPE", "vocab": VOCAB, "merges": [], "unk_token": []}}, "unk_token is not text"),
    ],
)
def test_tokenizer_json(tmp_path: Path, content: Any, said: str) -> None:
    path = save(tmp_path, tokenizer_json=content) / "tokenizer.json"
    with pytest.raises(FormatError, match=said) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.problems[0].where == str(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no pieces"),
        (b"IQ== 0\nIg== 1\n", "254 of the 256 bytes are not tokens"),
        (MODEL[:-1], "claims"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "claims 9223372036854775807 bytes"),
        (b"\x0a" + b"\xff" * 11, "longer than ten bytes"),
        (b"\x0a\x80", "ends inside a number"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (MODEL + b"\x08\x01", "field 1 is not a message"),
        (MODEL + piece(b"\xff\xfe"), "piece 2 is not UTF-8"),
        (MODEL + piece(b"x", score=float("nan")), "score nan"),
        (MODEL + piece(b"x", kind=9), "unknown type 9"),
        (MODEL + piece(b"<0xZZ>", kind=6), "byte piece 2"),
        (MODEL + field(2, varint(3 << 3 | 2) + varint(0)), "model_type has wire type 2"),
    ],
)
def test_tokenizer_model(tmp_path: Path, content: bytes, said: str) -> None:
    path = save(tmp_path, tokenizer_model=content) / "tokenizer.model"
    with pytest.raises(FormatError, match=said) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.problems[0].where == str(path)


def test_the_model_that_is_broken_above_is_sound(tmp_path: Path) -> None:
    assert read_tokenizer(save(tmp_path, tokenizer_model=MODEL)).tokens == ("<unk>", "a")


@pytest.mark.parametrize("kind", [3, 4, 77])
def test_model_kinds_that_no_engine_has(tmp_path: Path, kind: int) -> None:
    model = piece(b"<unk>", kind=2) + field(2, varint(3 << 3) + varint(kind)) + NORMALIZER
    with pytest.raises(TokenizerError, match="GGUF engines do not support this kind"):
        read_tokenizer(save(tmp_path, tokenizer_model=model))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "tokenizer_config_json",
            {"added_tokens_decoder": []} | {"added_tokens_decoder": [1]},
            "not an object",
        ),
        ("tokenizer_config_json", {"added_tokens_decoder": {"3": {}}}, "has no content"),
        ("tokenizer_config_json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "no usable id"),
        ("tokenizer_config_json", {"added_tokens_decoder": {"9" * 400: {"content": "y"}}}, "no usable id"),
        ("tokenizer_config_json", {"chat_template": 1}, "neither text nor a list"),
        ("tokenizer_config_json", {"chat_template": [{"name": 1}]}, "without name and template"),
        ("tokenizer_config_json", "[" * 1_000_000, "not valid JSON"),
        ("special_tokens_map_json", "{", "not valid JSON"),
        ("added_tokens_json", {"x": 3, "y": 3}, "belongs to two tokens"),
        ("generation_config_json", {"eos_token_id": ["2"]}, "no usable id"),
        ("generation_config_json", {"eos_token_id": 10**9}, "no usable id"),
        ("chat_template_jinja", b"\xff", "not UTF-8"),
    ],
)
def test_configuration_files(tmp_path: Path, name: str, content: Any, said: str) -> None:
    save(tmp_path, tokenizer_json=bpe(), **{name: content})
    with pytest.raises(FormatError, match=said):
        read_tokenizer(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    with pytest.raises(FormatError, match="too large"):
        read_tokenizer(tmp_path)


def test_merging_that_takes_too_long_is_given_up() -> None:
    """The work is quadratic in a token's length; what is too much is left unproven."""
    word = "".join(chr(0x4E00 + n) for n in range(513))
    merges = [f"{word[:n]} {word[n]}" for n in range(1, 513)]
    assert unreached([word[:512]], merges) == []
    assert unreached([word], merges) == [word]
    assert unreached([word[:100]] * 5, merges, most_work=15_000) == [word[:100]] * 2


def test_disagreeing_files(tmp_path: Path) -> None:
    data = {"model": {"type": "BPE", "vocab": {"<unk>": 0, "b": 1}, "merges": []}}
    with pytest.raises(FormatError, match="two files disagree on 1 tokens"):
        read_tokenizer(save(tmp_path, tokenizer_model=MODEL, tokenizer_json=data))


TRAINED = json.dumps(train_bpe([byte_level(use_regex=True)], size=270)).encode()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.tuples(st.integers(0, len(MODEL) - 1), st.integers(0, 255)))
def test_any_bytes_as_a_model(tmp_path: Path, noise: bytes | tuple[int, int]) -> None:
    content = noise if isinstance(noise, bytes) else MODEL[: noise[0]] + bytes([noise[1]]) + MODEL[noise[0] + 1 :]
    save(tmp_path, tokenizer_model=content)
    try:
        read_tokenizer(tmp_path)
    except (FormatError, TokenizerError):
        return


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values outside the vocabulary and the merges."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += leaves(inner, (*path, key)) if key not in ("vocab", "merges") else [(*path, key)]
    return found


CONFIGURATION = {
    "tokenizer_config_json": {
        "eos_token": {"content": "<|endoftext|>", "special": True},
        "pad_token": "!",
        "add_bos_token": False,
        "added_tokens_decoder": {"270": {"content": "<|endoftext|>", "special": True}},
        "additional_special_tokens": ["<|endoftext|>"],
        "chat_template": [{"name": "default", "template": "x"}],
        "tokenizer_class": "GPT2Tokenizer",
    },
    "special_tokens_map_json": {"bos_token": "<|endoftext|>", "unk_token": {"content": "<|endoftext|>"}},
    "generation_config_json": {"eos_token_id": [270, 3], "pad_token_id": 0},
    "added_tokens_json": {"<|endoftext|>": 270},
}


@pytest.mark.parametrize("name", ["tokenizer_json", *CONFIGURATION])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere(tmp_path: Path, name: str, data: st.DataObject) -> None:
    changed = json.loads(TRAINED) if name == "tokenizer_json" else copy.deepcopy(CONFIGURATION[name])
    *parents, last = data.draw(st.sampled_from(leaves(changed)))
    target: Any = changed
    for key in parents:
        target = target[key]
    target[last] = data.draw(JSON_VALUES)
    save(tmp_path, **{"tokenizer_json": TRAINED, **CONFIGURATION, name: json.dumps(changed)})
    try:
        gguf_metadata(read_tokenizer(tmp_path), vocab_size=512)
    except (FormatError, TokenizerError):
        return


def test_the_files_that_are_changed_above_are_sound(tmp_path: Path) -> None:
    read = read_tokenizer(save(tmp_path, tokenizer_json=TRAINED, **CONFIGURATION))
    assert read.end_tokens == (270, 3)
    assert len(gguf_metadata(read, vocab_size=512)) > 10
