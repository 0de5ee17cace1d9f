"""From the files of a tokenizer to one `Tokenizer`. Runs no code from them and encodes nothing.

Which file rules when several are there: a byte-level tokenizer.json; else tokenizer.model, since only it has the
scores; else tokenizer.json; else a rank file of tiktoken; else vocab.json with merges.txt. Where tokenizer.model rules,
tokenizer.json must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from crossdock.errors import FormatError, Problem
from crossdock.tokenizers.files import (
    MERGES_TXT,
    TIKTOKEN,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCAB_JSON,
    TokenizerFiles,
    find,
    read_json,
    read_text,
)
from crossdock.tokenizers.pre_tokenizers import GPT2_PATTERN
from crossdock.tokenizers.processors import added_around
from crossdock.tokenizers.sentencepiece import read_sentencepiece
from crossdock.tokenizers.special import (
    Configuration,
    added_beside,
    additional_special,
    chat_templates,
    flag,
    model_ids,
    named_tokens,
    read_configuration,
)
from crossdock.tokenizers.tiktoken import read_tiktoken
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType
from crossdock.tokenizers.tokenizer_json import (
    added_of,
    check_merges,
    merges_of,
    read_tokenizer_json,
    texts_of,
)
from crossdock.tokenizers.vocabulary import PAD_SCORE, Token, Vocabulary, difference, refuse

GPT2_END = "<|endoftext|>"
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer_class → pattern, for vocab.json, which has none in it (huggingface/transformers 4.57).
SLOW_PATTERNS = {
    "": GPT2_PATTERN,
    "GPT2Tokenizer": GPT2_PATTERN,
    "GPT2TokenizerFast": GPT2_PATTERN,
    "CodeGenTokenizer": GPT2_PATTERN,
    "GPTNeoXTokenizer": GPT2_PATTERN,
    "GPTNeoXTokenizerFast": GPT2_PATTERN,
    "Qwen2Tokenizer": QWEN2_PATTERN,
    "Qwen2TokenizerFast": QWEN2_PATTERN,
}

MAX_GAP = 65_536  # ids without a token, which are filled up: no model is padded so far


def read(path: Path) -> Tokenizer:
    """Read the tokenizer in a folder or file (see `find`).

    Raises FormatError for files that break their format, TokenizerError for tokenizers that cannot be carried
    over.
    """
    files = find(path)
    configuration = read_configuration(files)
    vocabulary, sources = _vocabulary(files, configuration)
    tokens = dict(vocabulary.tokens)
    unknown = vocabulary.special.get("unk")
    for number, token in added_beside(files, configuration, vocabulary.kind).items():
        if number == unknown and tokens[number].text == token.text:
            continue
        # A text that the vocabulary's own files made special stays so.
        old = tokens.get(number)
        if old is None or old.text != token.text or token.type == TokenType.CONTROL or old.type == TokenType.NORMAL:
            tokens[number] = token
    if not tokens:
        raise FormatError("the vocabulary is empty", where=str(files.companion_files[0][1]))
    special, missing = _special(vocabulary, tokens, configuration, files)
    _mark_control(tokens, vocabulary, configuration)
    size = max(tokens) + 1
    if size > 2 * len(tokens) + MAX_GAP:
        raise refuse(
            "the token ids leave far more gaps than there are tokens",
            files.companion_files[0][1],
            expected=f"at most {2 * len(tokens) + MAX_GAP:,} ids for {len(tokens):,} tokens",
            got=f"ids up to {size - 1:,}",
        )
    dense = [tokens.get(number, Token(f"[PAD{number}]", TokenType.UNUSED, PAD_SCORE)) for number in range(size)]
    ends = dict.fromkeys([*([special["eos"]] if "eos" in special else []), *model_ids(configuration, "eos")])
    where = files.get(TOKENIZER_CONFIG) or files.root
    by_model = vocabulary.kind == "spm" and TOKENIZER_MODEL in sources
    prefix = flag(configuration, "add_prefix_space", where) if by_model else None
    adds, overruled = _added(vocabulary, configuration, where, by_json=TOKENIZER_JSON in sources)
    return Tokenizer(
        kind=vocabulary.kind,
        tokens=tuple(token.text for token in dense),
        types=tuple(int(token.type) for token in dense),
        scores=() if vocabulary.kind == "bpe" else tuple(token.score for token in dense),
        merges=vocabulary.merges,
        splits=vocabulary.splits,
        ignore_merges=vocabulary.ignore_merges,
        special=special,
        end_tokens=tuple(ends),
        begin=vocabulary.begin,
        end=vocabulary.end,
        add_bos=adds["bos"],
        add_eos=adds["eos"],
        add_space_prefix=vocabulary.add_space_prefix if prefix is None else prefix,
        remove_extra_whitespaces=vocabulary.remove_extra_whitespaces,
        charsmap=vocabulary.charsmap,
        chat_templates=chat_templates(files, configuration),
        symbols=vocabulary.symbols,
        assumed=vocabulary.assumed,
        differences=(*vocabulary.differences, *missing, *overruled),
        sources=tuple(path for name, path in files.companion_files if name in sources),
    )


def _added(
    vocabulary: Vocabulary, configuration: Configuration, where: Path, *, by_json: bool
) -> tuple[dict[str, bool | None], list[Problem]]:
    """Whether encoding adds a begin and an end token: role → answer, None where nothing says so.

    The post-processor of a tokenizer.json decides, as in transformers 5.24, where the flags of tokenizer_config.json
    change nothing beside one; with the flags that say otherwise.
    """
    adds, overruled = {}, []
    for role, own in (("bos", vocabulary.add_bos), ("eos", vocabulary.add_eos)):
        name = f"add_{role}_token"
        wish = flag(configuration, name, where)
        adds[role] = bool(own) if by_json else own if wish is None else wish
        if by_json and wish is not None and wish != adds[role]:
            what = f"{name} is {str(wish).lower()}, but the post-processor of tokenizer.json decides (transformers 5)"
            overruled.append(difference(what, where))
    return adds, overruled


def _vocabulary(files: TokenizerFiles, configuration: Configuration) -> tuple[Vocabulary, tuple[str, ...]]:
    """The vocabulary and the names of the files it is from."""
    as_json, as_model = files.get(TOKENIZER_JSON), files.get(TOKENIZER_MODEL)
    if as_json is not None and as_model is not None:
        data = read_json(as_json)
        if _is_byte_level(data):
            return read_tokenizer_json(as_json), (TOKENIZER_JSON,)
        return _agreeing(read_sentencepiece(as_model), data, as_json, as_model), (
            TOKENIZER_MODEL,
            TOKENIZER_JSON,
        )
    if as_json is not None:
        return read_tokenizer_json(as_json), (TOKENIZER_JSON,)
    if as_model is not None:
        return read_sentencepiece(as_model), (TOKENIZER_MODEL,)
    if (ranks := files.get(TIKTOKEN)) is not None:
        return read_tiktoken(ranks), (TIKTOKEN,)
    return _vocab_and_merges(files, configuration), (VOCAB_JSON, MERGES_TXT)


def _is_byte_level(data: Mapping[str, object]) -> bool:
    parts: list[object] = [data.get("pre_tokenizer"), data.get("decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            if part.get("type") == "ByteLevel":
                return True
            for members in (part.get("pretokenizers"), part.get("decoders")):
                parts += members if isinstance(members, list) else []
    return False


def _agreeing(vocabulary: Vocabulary, data: Mapping[str, object], as_json: Path, as_model: Path) -> Vocabulary:
    """The SentencePiece vocabulary with the added tokens of tokenizer.json over it. Raises FormatError."""
    model = data.get("model")
    if not isinstance(model, Mapping):
        raise FormatError("no model in it", where=str(as_json))
    added = added_of(data, vocabulary.kind, as_json)
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        texts = {n: entry[0] for n, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    else:
        texts = texts_of(model, as_json)
    wrong = [
        (number, text, vocabulary.tokens[number].text)
        for number, text in texts.items()
        if number in vocabulary.tokens and number not in added
        # User-defined pieces hold spaces where the file has ▁.
        if vocabulary.tokens[number].text not in (text, text.replace("▁", " "))
    ]
    if wrong:
        number, text, other = wrong[0]
        raise FormatError(
            f"the tokenizer's two files disagree on {len(wrong)} tokens",
            where=f"{as_json}, {as_model}",
            expected=f"id {number} to be {other[:40]!r} as in the .model",
            got=repr(text[:40]),
            fix="pass the right file to --tokenizer",
        )
    unknown = vocabulary.special.get("unk")
    over = {number: token for number, token in added.items() if number != unknown}
    tokens = {**vocabulary.tokens, **over}
    around = added_around(data, tokens, as_json)
    return replace(
        vocabulary,
        tokens=tokens,
        special={**vocabulary.special, **around.special},
        begin=around.special.get("bos"),
        end=around.special.get("eos"),
        add_bos=around.add_bos,
        add_eos=around.add_eos,
        differences=(*vocabulary.differences, *around.differences),
    )


def _vocab_and_merges(files: TokenizerFiles, configuration: Configuration) -> Vocabulary:
    """GPT-2's pair of files. Raises FormatError and TokenizerError."""
    vocab, merges = files.get(VOCAB_JSON), files.get(MERGES_TXT)
    assert vocab is not None
    assert merges is not None
    name = configuration.tokenizer.get("tokenizer_class") or ""
    if not isinstance(name, str) or name not in SLOW_PATTERNS:
        raise refuse(
            "vocab.json does not say how text is split, and this tokenizer_class is not known",
            vocab,
            expected=", ".join(filter(None, SLOW_PATTERNS)),
            got=str(name),
            fix="pass the tokenizer.json of the same tokenizer instead",
        )
    tokens = {number: Token(text) for number, text in texts_of({"vocab": read_json(vocab)}, vocab).items()}
    lines = read_text(merges).split("\n")
    lines = [line.rstrip("\r") for line in lines if not line.startswith("#version") and line.strip()]
    pairs = merges_of({"merges": lines}, merges)
    check_merges(pairs, (token.text for token in tokens.values()), merges)
    special = {}
    if GPT2_END in (ids := {token.text: number for number, token in tokens.items()}):
        special = {"bos": ids[GPT2_END], "eos": ids[GPT2_END]}
    return Vocabulary(
        "bpe",
        tokens,
        merges=tuple(" ".join(pair) for pair in pairs),
        splits=(f"split {SLOW_PATTERNS[name]}",),
        special=special,
    )


def _special(
    vocabulary: Vocabulary, tokens: Mapping[int, Token], configuration: Configuration, files: TokenizerFiles
) -> tuple[dict[str, int], list[Problem]]:
    """role → id: what the configuration names, else the vocabulary, else the model's configuration.

    With it, the named tokens that do not exist; for "eos" that is a FormatError: nothing would end.
    """
    ids = {token.text: number for number, token in reversed(list(tokens.items()))}
    special = dict(vocabulary.special)
    missing = []
    for role, text in named_tokens(configuration).items():
        if text in ids:
            special[role] = ids[text]
        elif role == "eos":
            fix = "add it to the vocabulary with its id, or correct eos_token in tokenizer_config.json"
            raise FormatError(
                "the end token is not in the vocabulary", where=str(files.root), got=repr(text[:80]), fix=fix
            )
        else:
            missing.append(difference(f"{role}_token {text[:80]!r} is not in the vocabulary", files.root))
    for role in ("bos", "eos", "pad"):
        numbers = model_ids(configuration, role)
        if role not in special and numbers and numbers[0] in tokens:
            special[role] = numbers[0]
        elif role != "eos" and numbers and numbers[0] not in tokens:  # an end token that does not exist is an error
            missing.append(difference(f"{role}_token_id {numbers[0]} is not a token of this tokenizer", files.root))
    return special, missing


def _mark_control(tokens: dict[int, Token], vocabulary: Vocabulary, configuration: Configuration) -> None:
    """Tokens that the tokenizer's files name as special must not come out of ordinary text.

    Not so padding and unknown tokens, which may be ordinary ones that were pressed into service ("!" of
    GPT-2): as a control token it would be missing from generated text.
    """
    ids = {token.text: number for number, token in reversed(list(tokens.items()))}
    named = [text for role, text in named_tokens(configuration).items() if role not in ("pad", "unk")]
    numbers = {ids[text] for text in (*named, *additional_special(configuration)) if text in ids}
    numbers |= {number for role, number in vocabulary.special.items() if role in ("bos", "eos")}
    for number in numbers - {vocabulary.special.get("unk", -1)}:
        if tokens[number].type in (TokenType.NORMAL, TokenType.USER_DEFINED):
            tokens[number] = tokens[number]._replace(type=TokenType.CONTROL)
