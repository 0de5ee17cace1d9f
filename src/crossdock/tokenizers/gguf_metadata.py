"""A tokenizer as GGUF keys, as llama.cpp reads them (`src/llama-vocab.cpp` llama_vocab::impl::load, b11549).

Writes no file: it gives (key, type name, value) for the GGUF writer. Type names are those of the GGUF
specification: "string", "uint32", "bool", and "array[string]", "array[float32]", "array[int32]",
"array[uint8]".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from crossdock.errors import Problem, TokenizerError
from crossdock.tokenizers.pre_tokenizers import choose, table
from crossdock.tokenizers.tokenizer import Tokenizer, TokenType
from crossdock.tokenizers.vocabulary import PAD_SCORE

Entry = tuple[str, str, Any]

MODELS = {"bpe": "gpt2", "spm": "llama", "unigram": "t5"}
ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # sic
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<EOT>", "_<EOT>", "[EOT]")
# llama.cpp ends a generation at such a text in any case; in order of preference as the main end token.
END_TEXTS = (
    "<|endoftext|>",
    "</s>",
    "<|end_of_text|>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    *END_OF_TURN,
    END_OF_MESSAGE,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "[EOS]",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)


def gguf_metadata(
    tokenizer: Tokenizer, *, vocab_size: int, pre: str | None = None, vocab_from: str = ""
) -> list[Entry]:
    """The keys `tokenizer.*` for a model whose embedding has `vocab_size` rows.

    Rows beyond the tokenizer become "[PAD{id}]" of type UNUSED. `pre` overrides the name of the
    pre-tokenizer; `vocab_from` says in messages where `vocab_size` comes from.

    The begin and end token are those that the tokenizer adds to a text, since llama.cpp adds no others; where it adds
    none, those that its configuration names. What ends a generation besides goes to eot and eom.

    What is written when a role is unknown, since llama.cpp's defaults are ids of ordinary tokens (11 in
    "gpt2", 1 and 2 in "llama"): an end token is looked for among the texts at which llama.cpp stops anyway;
    failing that it is an unused row, which is never generated; failing that it is an error. The begin token
    is then the end token, as in GPT-2. add_bos and add_eos are always written: see `Tokenizer.begins_with`.

    Raises TokenizerError with all problems: tokens beyond the embedding, texts given to two ids (llama.cpp
    refuses or aborts), end tokens that cannot be expressed, no name for the pre-tokenizer.
    """
    problems: list[Problem] = []
    where = ", ".join(map(str, tokenizer.sources))
    tokens, types, scores = _padded(tokenizer, vocab_size)
    if len(tokenizer.tokens) > vocab_size:
        problems.append(_beyond(tokenizer, vocab_size, where, vocab_from))
    problems += _duplicates(tokens, where)
    problems += _misplaced(tokenizer, where)
    name = "default"
    if tokenizer.kind == "bpe":
        try:
            name = choose(tokenizer, pre)
        except TokenizerError as error:
            problems += error.problems
    elif pre is not None:
        problems.append(Problem(f"only byte-level BPE has a pre-tokenizer, {pre!r} does not apply", where=where))
    ids = _role_ids(tokenizer, tokens, types)
    if "eos" not in ids:
        problems.append(_no_end(where))
    problems += _lost_ends(tokenizer, ids, where)
    if problems:
        raise TokenizerError(problems)
    entries: list[Entry] = [
        ("tokenizer.ggml.model", "string", MODELS[tokenizer.kind]),
        ("tokenizer.ggml.pre", "string", name),
        ("tokenizer.ggml.tokens", "array[string]", tokens),
        ("tokenizer.ggml.token_type", "array[int32]", types),
    ]
    if tokenizer.kind == "bpe":
        entries.append(("tokenizer.ggml.merges", "array[string]", list(tokenizer.merges)))
    else:
        entries.append(("tokenizer.ggml.scores", "array[float32]", scores))
        entries.append(("tokenizer.ggml.add_space_prefix", "bool", tokenizer.add_space_prefix))
        entries.append(("tokenizer.ggml.remove_extra_whitespaces", "bool", _collapses(tokenizer)))
    if tokenizer.kind == "unigram" and tokenizer.charsmap:
        entries.append(("tokenizer.ggml.precompiled_charsmap", "array[uint8]", tokenizer.charsmap))
    entries += [(f"tokenizer.ggml.{ID_KEYS[role]}", "uint32", number) for role, number in ids.items()]
    entries.append(("tokenizer.ggml.add_bos_token", "bool", tokenizer.begins_with() is not None))
    entries.append(("tokenizer.ggml.add_eos_token", "bool", tokenizer.ends_with() is not None))
    return entries + _templates(tokenizer)


def gguf_differences(tokenizer: Tokenizer, *, pre: str | None = None) -> tuple[Problem, ...]:
    """What llama.cpp will do otherwise than the tokenizer itself, as far as is known: warnings, not errors.

    Raises TokenizerError when there is no name for the pre-tokenizer.
    """
    found = list(tokenizer.differences)
    if tokenizer.remove_extra_whitespaces != _collapses(tokenizer):
        what = "llama.cpp cannot collapse runs of spaces without a space before the text: runs are kept"
        found.append(Problem(what, where=", ".join(map(str, tokenizer.sources))))
    ends = [text for text in tokenizer.tokens if text in END_TEXTS]
    named = {tokenizer.tokens[number] for number in tokenizer.end_tokens if number < len(tokenizer.tokens)}
    if named and (more := [text for text in ends if text not in named]):
        what = f"llama.cpp also ends a generation at {', '.join(map(repr, more))}, which it knows by the text"
        found.append(Problem(what, where=", ".join(map(str, tokenizer.sources))))
    end = tokenizer.ends_with()
    if end is not None and named and end not in tokenizer.end_tokens and tokenizer.tokens[end] not in END_TEXTS:
        what = f"llama.cpp also ends a generation at {tokenizer.tokens[end]!r}, which it puts behind each text"
        found.append(Problem(what, where=", ".join(map(str, tokenizer.sources))))
    if tokenizer.kind == "bpe":
        name, where = choose(tokenizer, pre), ", ".join(map(str, tokenizer.sources))
        row = next((row for row in table().rows if row.name == name), None)
        if row is None or tokenizer.splits not in row.stages:
            what = f"the pre-tokenizer {name!r} was asked for; it is not the tokenizer's own"
            found.append(Problem(what, where=where, got=" then ".join(tokenizer.splits)))
        elif row.differs:
            found.append(Problem(row.differs, where=where))
    found += [Problem(sentence) for sentence in (*tokenizer.assumed, *no_end(tokenizer))]
    return tuple(found)


def guessed_end(tokenizer: Tokenizer) -> int | None:
    """The end token of a tokenizer of which no file names one: a control token at whose text llama.cpp stops anyway."""
    pairs = enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
    found = {text: number for number, (text, kind) in pairs if kind == TokenType.CONTROL}
    return next((found[text] for text in END_TEXTS if text in found), None)


def ends_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id at which a generation ends, the main one first.

    A GGUF file's vocabulary also has those that llama.cpp knows by their text where its chat template uses them; one of
    which no file names an end has the one that is taken for it.
    """
    ends = dict.fromkeys(tokenizer.end_tokens)
    if not tokenizer.sources:
        template = "".join(tokenizer.chat_templates.values())
        pairs = enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        by_text = (n for n, (text, kind) in pairs if kind == TokenType.CONTROL and text in END_TEXTS)
        ends |= dict.fromkeys(number for number in by_text if tokenizer.tokens[number] in template)
    if not ends and (guess := guessed_end(tokenizer)) is not None:
        ends[guess] = None
    return tuple(ends)


def no_end(tokenizer: Tokenizer) -> tuple[str, ...]:
    """A sentence when no file says where a text ends: which token is taken for it, or that generations will not end."""
    if tokenizer.end_tokens or tokenizer.ends_with() is not None:
        return ()
    guess = guessed_end(tokenizer)
    if guess is None:
        return ("no end-of-text token is known: generation will not stop by itself; name it as eos_token in "
                "tokenizer_config.json",)  # fmt: skip
    return (f"no file names the end-of-text token; {tokenizer.tokens[guess]!r} ({guess}) is taken for it, by its text",)


def _collapses(tokenizer: Tokenizer) -> bool:
    """llama.cpp puts a space before the text whenever it collapses; that would change every text."""
    return tokenizer.remove_extra_whitespaces and tokenizer.add_space_prefix


def too_few(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    """A sentence when the tokenizer has over a tenth fewer tokens than the embedding rows: more than any padding."""
    size = len(tokenizer.tokens)
    if 10 * size >= 9 * vocab_size:
        return ()
    where = ", ".join(map(str, tokenizer.sources))
    return (f"the tokenizer has {size:,} tokens, the embedding {vocab_size:,} rows: is {where} this model's own?",)


def _padded(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int], list[float]]:
    missing = range(len(tokenizer.tokens), vocab_size)
    tokens = [*tokenizer.tokens, *(f"[PAD{number}]" for number in missing)]
    types = [*tokenizer.types, *(int(TokenType.UNUSED) for _ in missing)]
    scores = [*tokenizer.scores, *(PAD_SCORE for _ in missing)] if tokenizer.scores else []
    return tokens, types, scores


def _role_ids(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """role → id in the order in which they are written."""
    special = dict(tokenizer.special)
    ends = list(tokenizer.end_tokens)
    eos = tokenizer.ends_with()
    if eos is None:
        eos = ends[0] if ends else special.get("eos")
    if eos is None:
        eos = guessed_end(tokenizer)
    if eos is None:
        eos = next((number for number in reversed(range(len(types))) if types[number] == TokenType.UNUSED), None)
    begin = tokenizer.begins_with()
    ids = {"bos": special.get("bos", eos) if begin is None else begin, "eos": eos}
    # The further end tokens: those that llama.cpp does not know by their text need the two places first.
    unknown = [n for n in ends if n != eos and n < len(tokens) and tokens[n] not in END_TEXTS]
    turns = [number for number in ends if number < len(tokens) and tokens[number] in END_OF_TURN]
    messages = [number for number in ends if number < len(tokens) and tokens[number] == END_OF_MESSAGE]
    ids |= dict(zip(("eot", "eom"), unknown, strict=False))
    for role, numbers in (("eot", turns), ("eom", messages)):
        if numbers:
            ids.setdefault(role, numbers[0])
    # What is left is known by its text to llama.cpp alone: a free place tells it to every other reader.
    left = [n for n in ends if n < len(tokens) and n not in ids.values()]
    ids |= dict(zip((role for role in ("eom", "eot") if role not in ids), left, strict=False))
    ids |= {role: special[role] for role in ("unk", "sep", "pad", "mask") if role in special}
    return {role: number for role, number in ids.items() if number is not None}


def _lost_ends(tokenizer: Tokenizer, ids: dict[str, int], where: str) -> list[Problem]:
    written = {ids.get(role) for role in ("eos", "eot", "eom")}
    size = len(tokenizer.tokens)
    lost = [n for n in tokenizer.end_tokens if n < size and n not in written and tokenizer.tokens[n] not in END_TEXTS]
    if not lost:
        return []
    return [
        Problem(
            f"GGUF holds three end tokens besides those known by their text; {len(lost)} more would be lost",
            where=where,
            got=", ".join(f"{number} {tokenizer.tokens[number]!r}" for number in lost),
            fix="shorten eos_token_id in generation_config.json",
        )
    ]


def _beyond(tokenizer: Tokenizer, vocab_size: int, where: str, vocab_from: str) -> Problem:
    size = len(tokenizer.tokens)
    listed = ", ".join(f"{n} {tokenizer.tokens[n][:30]!r}" for n in range(vocab_size, min(size, vocab_size + 5)))
    return Problem(
        f"the tokenizer has {size - vocab_size} tokens beyond the model's embedding",
        where=where,
        expected=f"ids below {vocab_size}, the rows of the embedding" + (f" ({vocab_from})" if vocab_from else ""),
        got=f"{size} tokens: {listed}{', ...' if size > vocab_size + 5 else ''}",
        cause="the tokenizer of another model, tokens added after training, or a vocabulary clipped too far",
        fix="--tokenizer with the files the model was trained with",
    )


def _duplicates(tokens: Sequence[str], where: str) -> list[Problem]:
    twice = {text for text, count in Counter(tokens).items() if count > 1}
    if not twice:
        return []
    numbers: dict[str, list[int]] = {}
    for number, text in enumerate(tokens):
        if text in twice:
            numbers.setdefault(text, []).append(number)
    listed = [f"{text[:40]!r} = {ids}" for text, ids in list(numbers.items())[:20]]
    return [
        Problem(
            f"{len(twice)} token texts have more than one id, which llama.cpp does not load",
            where=where,
            got="; ".join(listed),
            fix="rename the added tokens that repeat a token of the vocabulary",
        )
    ]


def _misplaced(tokenizer: Tokenizer, where: str) -> list[Problem]:
    size = len(tokenizer.tokens)
    named = [*tokenizer.special.items(), *(("eos", number) for number in tokenizer.end_tokens)]
    beyond = dict.fromkeys((role, number) for role, number in named if number >= size)
    return [
        Problem(f"{role} token {number} is not in the tokenizer", where=where, expected=f"an id below {size}")
        for role, number in beyond
    ]


def _no_end(where: str) -> Problem:
    return Problem(
        "no end token is known, and llama.cpp would stop at an ordinary token",
        where=where,
        fix='name it: "eos_token" in tokenizer_config.json, or "eos_token_id" in generation_config.json',
    )


def _templates(tokenizer: Tokenizer) -> list[Entry]:
    """Named templates as gguf-py's add_chat_template writes them: letters, digits and _ in names."""
    entries: list[Entry] = []
    names = []
    for name, text in tokenizer.chat_templates.items():
        clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        if name == "default":
            entries.append(("tokenizer.chat_template", "string", text))
        elif clean and clean not in names:
            names.append(clean)
            entries.append((f"tokenizer.chat_template.{clean}", "string", text))
    if names:
        entries.append(("tokenizer.chat_templates", "array[string]", names))
    return entries
