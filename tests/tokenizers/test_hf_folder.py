"""What a Hugging Face folder gets of a tokenizer that transformers could not load as it is: a tokenizer.json whose ids
are those of the library that owns the files, and the tokens that begin and end texts and generations.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizer_samples import CORPUS, HARD_TEXTS, byte_level, hard_texts, save, train_bpe
from transformers import AutoTokenizer

import tokenizers as hf
from crossdock.errors import FormatError, TokenizerError
from crossdock.tokenizers.files import find
from crossdock.tokenizers.folder import hf_folder
from crossdock.tokenizers.from_gguf import from_gguf
from crossdock.tokenizers.gguf_metadata import ends_of, gguf_metadata
from crossdock.tokenizers.pre_tokenizers import table
from crossdock.tokenizers.reading import read as read_tokenizer

RANKS = CORPUS.parent / "tiktoken" / "ranks.txt"  # 900 ranks, and what tiktoken 0.12 reads HARD_TEXTS as with them
IDS: dict[str, list[list[int]]] = json.loads((RANKS.parent / "ids.json").read_text())


def trained(**options: Any) -> bytes:
    model = io.BytesIO()
    fixed: dict[str, Any] = {"vocab_size": 700, "character_coverage": 0.99, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(input=str(CORPUS), model_writer=model, **fixed | options)
    return model.getvalue()


def folder_of(path: Path, out: Path) -> tuple[Path, tuple[str, ...]]:
    """The tokenizer at `path` as a Hugging Face folder gets it, and what was said."""
    copied, made, sentences = hf_folder(find(path), read_tokenizer(path))
    out.mkdir()
    for name, source in copied.items():
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, out / name)
    for name, content in made.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    return out, sentences


def by_transformers(folder: Path, texts: list[str] | tuple[str, ...]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False], ids=["dummy_prefix", "plain"])
@pytest.mark.parametrize("collapse", [True, False], ids=["collapsed", "runs"])
@pytest.mark.parametrize("fallback", [True, False], ids=["bytes", "unknown"])
def test_sentencepiece_reads_the_same(tmp_path: Path, kind: str, prefix: bool, collapse: bool, fallback: bool) -> None:
    """User-defined pieces among them, which are matched within the text and put no space before what follows."""
    model = trained(
        model_type=kind, add_dummy_prefix=prefix, remove_extra_whitespaces=collapse, byte_fallback=fallback,
        normalization_rule_name="identity", user_defined_symbols=["<|tool|>", "{x}"],
    )  # fmt: skip
    folder, sentences = folder_of(save(tmp_path / "a", tokenizer_model=model), tmp_path / "b")
    texts = [text for text in hard_texts(("<|tool|>", "{x}")) if "\0" not in text]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert by_transformers(folder, texts) == [list(processor.encode(text)) for text in texts]
    assert sentences == ()
    assert (folder / "tokenizer.model").read_bytes() == model


def test_a_normalizer_that_transformers_applies_otherwise_is_said(tmp_path: Path) -> None:
    model = trained(model_type="unigram", normalization_rule_name="nmt_nfkc")
    folder, sentences = folder_of(save(tmp_path / "a", tokenizer_model=model), tmp_path / "b")
    texts = ["ﬁne Ⅷ ½ ｆｕｌｌ", "a\u3000b\tc", "  two  spaces "]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert by_transformers(folder, texts) == [list(processor.encode(text)) for text in texts]
    assert "normalization to whole graphemes" in sentences[0]


@pytest.mark.parametrize(
    ("name", "split", "first"), [("tokenizer.model", "llama-bpe", 0), ("own.vocab.json", "tekken", 1000)]
)
def test_tiktoken_reads_the_same(tmp_path: Path, name: str, split: str, first: int) -> None:
    """Lines of base64 and ranks, and Megatron's JSON list, in which the special tokens come first."""
    lines = [line.split() for line in RANKS.read_text().splitlines()]
    listed = [{"rank": int(rank), "token_bytes": encoded, "token_str": ""} for encoded, rank in lines]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text(json.dumps(listed) if first else RANKS.read_text())
    folder, sentences = folder_of(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert by_transformers(folder, HARD_TEXTS) == IDS[split]
    assert "does not say" in sentences[0] or "says nothing" in sentences[0]
    assert len(read_tokenizer(folder).tokens) == 900 + first
    assert read_tokenizer(tmp_path / "a").special == ({"bos": 1, "eos": 2} if first else {})


@pytest.mark.parametrize(
    "names",
    [("vocab.json", "merges.txt"), ("gpt2-vocab.json", "gpt2-merges.txt"), ("encoder.json", "vocab.bpe")],
    ids=["usual", "Megatron", "OpenAI"],
)
def test_a_pair_of_files_under_any_of_its_names(tmp_path: Path, names: tuple[str, str]) -> None:
    data = train_bpe([byte_level(True)], size=400)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / names[0]).write_text(json.dumps({**data["model"]["vocab"], "<|endoftext|>": 400}))
    (tmp_path / "a" / names[1]).write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    folder, _ = folder_of(tmp_path / "a", tmp_path / "b")
    own = hf.Tokenizer.from_str(json.dumps(data))
    texts = hard_texts(("<|endoftext|>",))
    assert by_transformers(folder, texts) == [own.encode(text).ids for text in texts]
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|endoftext|>"
    assert {"tokenizer.json", "vocab.json", "merges.txt"} <= {path.name for path in folder.iterdir()}


def test_several_vocabularies_are_not_chosen_among(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(TokenizerError, match="several vocabularies") as caught:
        find(tmp_path)
    assert caught.value.problems[0].got == "a.model, b.model"


def test_a_hub_id_is_not_a_path() -> None:
    with pytest.raises(TokenizerError) as caught:
        find(Path("meta-llama/Llama-3.1-8B"))
    assert "hf download meta-llama/Llama-3.1-8B" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("template", "flags"),
    [("$A <e>", {}), ("<b> $A <e>", {"add_bos_token": False, "add_eos_token": False}), ("$A", {"add_bos_token": True})],
)
def test_what_the_template_adds_is_what_gguf_says(tmp_path: Path, template: str, flags: dict[str, bool]) -> None:
    """The appended token is the GGUF's end token, whatever the configuration names; what it names goes to eot."""
    data = train_bpe([byte_level(True)], size=400, special=("<b>", "<e>", "<|im_end|>", "<other>"))
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in template.split()
    ]
    ids = {"<b>": 400, "<e>": 401}
    special = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ids.items()}
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, *single], "special_tokens": special,
    }  # fmt: skip
    config = {"bos_token": "<other>", "eos_token": "<|im_end|>", **flags}
    save(tmp_path, tokenizer_json=data, tokenizer_config_json=config)
    read = read_tokenizer(tmp_path)
    keys = {key.rpartition(".")[2]: value for key, _, value in gguf_metadata(read, vocab_size=448)}
    around = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a").tokens
    first, last = around[0] == "<b>", around[-1] == "<e>"
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (first, last)
    assert keys["bos_token_id"] == (400 if first else 403)
    assert (keys["eos_token_id"], keys["eot_token_id"]) == (401 if last else 402, 402)
    assert any("decides" in problem.what for problem in read.differences) == bool(flags)


def test_every_end_that_a_configuration_names(tmp_path: Path) -> None:
    """The tokenizer's own, then generation_config.json's, then config.json's."""
    data = train_bpe([byte_level(True)], size=400, special=("<a>", "<b>", "<c>", "<d>"))
    save(tmp_path, tokenizer_json=data, tokenizer_config_json={"eos_token": "<c>"})
    save(tmp_path, generation_config_json={"eos_token_id": [401, 402]}, config_json={"eos_token_id": 400})
    assert read_tokenizer(tmp_path).end_tokens == (402, 401, 400)


def test_ends_come_back_from_a_gguf_file(tmp_path: Path) -> None:
    """Also one that only its text tells, where the chat template uses it."""
    special = ("<e>", "<t>", "<m>", "<|im_end|>", "<|eot_id|>")
    save(tmp_path, tokenizer_json=train_bpe([byte_level(True)], size=400, special=special))
    template = "{{ messages }}<|im_end|>"
    save(tmp_path, tokenizer_config_json={"eos_token": "<e>", "chat_template": template})
    save(tmp_path, generation_config_json={"eos_token_id": [400, 401, 402]})
    entries = gguf_metadata(read_tokenizer(tmp_path), vocab_size=405)
    read = from_gguf({key: value for key, _, value in entries}, "x")
    assert ends_of(read) == (400, 401, 402, 403)


@pytest.mark.parametrize(
    ("own", "named", "places"),
    [
        ("<a>", ["</s>", "<b>", "<a>"], ("<a>", "<b>", "</s>")),
        ("</s>", ["<|im_end|>", "</s>", "<|call|>"], ("</s>", "<|im_end|>", "<|call|>")),
        ("<|call|>", ["</s>"], ("<|call|>", None, "</s>")),
        ("<a>", ["<b>", "</s>", "<c>"], ("<a>", "<b>", "<c>")),
    ],
)
def test_an_end_that_its_text_tells_takes_a_free_place(
    tmp_path: Path, own: str, named: list[str], places: tuple[str | None, ...]
) -> None:
    """llama.cpp ends at its text in any case; a reader of eos, eot and eom alone does only where a place names it."""
    special = ("<a>", "<b>", "<c>", "</s>", "<|im_end|>", "<|call|>")
    ids = {text: 400 + n for n, text in enumerate(special)}
    save(tmp_path, tokenizer_json=train_bpe([byte_level(True)], size=400, special=special))
    save(tmp_path, tokenizer_config_json={"eos_token": own})
    save(tmp_path, generation_config_json={"eos_token_id": [ids[text] for text in named]})
    entries = gguf_metadata(read_tokenizer(tmp_path), vocab_size=406)
    keys = {key.rpartition(".")[2]: value for key, _, value in entries}
    assert tuple(keys.get(f"{role}_token_id") for role in ("eos", "eot", "eom")) == tuple(
        None if text is None else ids[text] for text in places
    )
    read = from_gguf({key: value for key, _, value in entries}, "x")
    assert set(ends_of(read)) == {ids[text] for text in places if text is not None}


@pytest.mark.parametrize("form", ["text", "names"])
def test_a_chat_template_of_a_processor(tmp_path: Path, form: str) -> None:
    data = train_bpe([byte_level(True)], size=400)
    template: Any = "hello" if form == "text" else {"default": "hello", "tools": "with tools"}
    save(tmp_path / "a", tokenizer_json=data, chat_template_json={"chat_template": template})
    folder, _ = folder_of(tmp_path / "a", tmp_path / "b")
    assert AutoTokenizer.from_pretrained(folder).chat_template == template
    assert read_tokenizer(tmp_path / "a").chat_templates["default"] == "hello"
    assert not (folder / "chat_template.json").exists()


def test_a_folder_of_chat_templates(tmp_path: Path) -> None:
    save(tmp_path / "a", tokenizer_json=train_bpe([byte_level(True)], size=400))
    save(tmp_path / "a" / "chat_templates", default_jinja="hello", tools_jinja="with tools")
    folder, _ = folder_of(tmp_path / "a", tmp_path / "b")
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"default": "hello", "tools": "with tools"}


def broken(change: str) -> bytes:
    """A sound model with one thing in it that google/sentencepiece refuses."""
    sound = trained(model_type="bpe", byte_fallback=True, normalization_rule_name="nmt_nfkc")
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(sound)
    if change == "twice":
        proto.pieces[300].piece = proto.pieces[301].piece
    elif change == "bytes":
        del proto.pieces[10]
    elif change == "fallback":
        proto.trainer_spec.byte_fallback = False
    elif change == "empty":
        proto.pieces[300].piece = ""
    elif change == "case":
        proto.pieces[3 + 0xAB].piece = "<0xab>"
    elif change == "map":
        proto.normalizer_spec.precompiled_charsmap = proto.normalizer_spec.precompiled_charsmap[:-20_000]
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("change", ["twice", "bytes", "fallback", "empty", "case", "map"])
def test_what_sentencepiece_refuses_is_refused(tmp_path: Path, change: str) -> None:
    model = broken(change)
    with pytest.raises(RuntimeError):
        sentencepiece.SentencePieceProcessor(model_proto=model)
    with pytest.raises(FormatError):
        read_tokenizer(save(tmp_path, tokenizer_model=model))


def test_a_model_cut_between_two_pieces_is_refused(tmp_path: Path) -> None:
    """The library takes it for a Unigram model with default settings; no trainer writes such a file."""
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained(model_type="unigram", normalization_rule_name="identity"))
    proto.ClearField("trainer_spec")
    proto.ClearField("normalizer_spec")
    with pytest.raises(FormatError, match="section is missing"):
        read_tokenizer(save(tmp_path, tokenizer_model=proto.SerializeToString()))


@pytest.mark.parametrize("name", sorted({row.name for row in table().rows} & {"llama-bpe", "qwen2", "gpt-2"}))
def test_published_rank_files_have_their_own_special_tokens(tmp_path: Path, name: str) -> None:
    """By name and number of ranks, the ranks themselves made up."""
    import base64

    files = {"llama-bpe": ("tokenizer.model", 128000, 128256, "<|end_of_text|>"),
             "qwen2": ("qwen.tiktoken", 151643, 151851, "<|endoftext|>"),
             "gpt-2": ("gpt2.tiktoken", 50256, 50257, "<|endoftext|>")}  # fmt: skip
    file, count, size, end = files[name]
    texts = [bytes([n]) for n in range(256)] + [
        b"%c%c%c" % (n >> 16, n >> 8 & 255, n & 255) for n in range(count - 256)
    ]
    lines = b"".join(base64.b64encode(text) + b" %d\n" % rank for rank, text in enumerate(texts))
    (tmp_path / file).write_bytes(lines)
    read = read_tokenizer(tmp_path / file)
    assert (len(read.tokens), read.tokens[read.end_tokens[0]], read.assumed) == (size, end, ())
    assert read.splits == next(row for row in table().rows if row.name == name).stages[0]
