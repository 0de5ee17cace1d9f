"""The configuration files beside a vocabulary: which token begins, ends and pads, and the chat templates.

Reads tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and the Jinja files;
the order of precedence is that of huggingface/transformers 5.23 (`PreTrainedTokenizerBase.from_pretrained`):
Jinja files win over tokenizer_config.json, tokenizer_config.json over special_tokens_map.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError
from crossdock.tokenizers.files import (
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    CHAT_TEMPLATES_FOLDER,
    OLD_TEMPLATE,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TokenizerFiles,
    read_json,
    read_text,
)
from crossdock.tokenizers.tokenizer import Kind
from crossdock.tokenizers.vocabulary import Token, added_token, by_id, check_id, check_texts

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The tokenizer's configuration files as they are; {} for one that is not there."""

    tokenizer: Mapping[str, Any]
    special_tokens: Mapping[str, Any]
    models: tuple[tuple[Path, Mapping[str, Any]], ...]


def read_configuration(files: TokenizerFiles) -> Configuration:
    """Read what is there. Raises FormatError."""

    def optional(name: str) -> Mapping[str, Any]:
        path = files.get(name)
        return {} if path is None else read_json(path)

    models = tuple((path, read_json(path)) for path in files.model_configs)
    return Configuration(optional(TOKENIZER_CONFIG), optional(SPECIAL_TOKENS_MAP), models)


def added_beside(files: TokenizerFiles, configuration: Configuration, kind: Kind) -> dict[int, Token]:
    """id → entry from added_tokens.json and added_tokens_decoder, which add to the vocabulary and override
    it.

    Raises FormatError.
    """
    tokens: dict[int, Token] = {}
    if path := files.get(ADDED_TOKENS):
        listed = read_json(path)
        check_texts(listed, path, "added token")
        for number, text in by_id(listed.items(), path).items():
            tokens[number] = added_token(text, False, kind)
    decoder = configuration.tokenizer.get("added_tokens_decoder") or {}
    where = files.get(TOKENIZER_CONFIG) or files.root
    if not isinstance(decoder, Mapping):
        raise FormatError("added_tokens_decoder is not an object", where=str(where))
    for key, entry in decoder.items():
        content = text_of(entry)
        if content is None:
            what = f"added token {key[:20]} has no content"
            raise FormatError(what, where=str(where), got=repr(entry)[:80])
        check_texts([content], where, "added token")
        number = check_id(int(key) if key.isdecimal() and len(key) < 10 else key, content, where)
        is_special = isinstance(entry, Mapping) and bool(entry.get("special"))
        tokens[number] = added_token(content, is_special, kind)
    return tokens


def named_tokens(configuration: Configuration) -> dict[str, str]:
    """role → text, as named in tokenizer_config.json or else in special_tokens_map.json."""
    named: dict[str, str] = {}
    for role in ROLES:
        for source in (configuration.tokenizer, configuration.special_tokens):
            found = text_of(source.get(f"{role}_token"))
            if found is not None and role not in named:
                named[role] = found
    return named


def additional_special(configuration: Configuration) -> list[str]:
    """Texts that are special without a role."""
    found = []
    for source in (configuration.tokenizer, configuration.special_tokens):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = source.get(key)
            entries = listed.values() if isinstance(listed, Mapping) else listed if isinstance(listed, list) else ()
            found += [text for entry in entries if (text := text_of(entry)) is not None]
    return found


def model_ids(configuration: Configuration, role: str) -> tuple[int, ...]:
    """The ids that generation_config.json and then config.json give to a role, each once.

    `eos_token_id` may be a list. Raises FormatError.
    """
    found: list[int] = []
    for path, config in configuration.models:
        value = config.get(f"{role}_token_id")
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        # Some old files write -1 for "none".
        found += [check_id(number, f"{role}_token_id", path) for number in listed if number != -1]
    return tuple(dict.fromkeys(found))


def chat_templates(files: TokenizerFiles, configuration: Configuration) -> dict[str, str]:
    """name → Jinja text; the main one is "default". Raises FormatError."""
    where = files.get(TOKENIZER_CONFIG) or files.root
    templates: dict[str, str] = {}
    template_value = configuration.tokenizer.get("chat_template")
    if isinstance(template_value, str):
        templates["default"] = template_value
    elif isinstance(template_value, list):
        for entry in template_value:
            name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (None, None)
            if not isinstance(name, str) or not isinstance(text, str):
                raise FormatError("a chat template without name and template", where=str(where), got=repr(entry)[:80])
            templates[name] = text
    elif template_value is not None:
        raise FormatError(
            "chat_template is neither text nor a list", where=str(where), got=type(template_value).__name__
        )
    if path := files.get(OLD_TEMPLATE):
        templates |= _old_templates(read_json(path).get("chat_template"), path)
    for name, path in files.companion_files:
        if name == CHAT_TEMPLATE:
            templates["default"] = read_text(path)
        elif name.startswith(f"{CHAT_TEMPLATES_FOLDER}/"):
            templates[path.stem] = read_text(path)
    check_texts([*templates, *templates.values()], where, "chat template")
    return templates


def _old_templates(value: Any, path: Path) -> dict[str, str]:
    """The templates of a chat_template.json: one text, or names and texts."""
    named = {"default": value} if isinstance(value, str) else value
    if not isinstance(named, Mapping) or not all(isinstance(text, str) for text in named.values()):
        raise FormatError("chat_template is neither text nor texts by name", where=str(path), got=repr(value)[:80])
    return dict(named)


def flag(configuration: Configuration, name: str, where: Path) -> bool | None:
    """A boolean of tokenizer_config.json, None when it is not there. Raises FormatError for another kind of value."""
    value = configuration.tokenizer.get(name)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{name} is neither true nor false", where=str(where), got=repr(value)[:80])
    return value


def text_of(entry: Any) -> str | None:
    """The text of a special token, which is written as a string or as an object with "content"."""
    value = entry.get("content") if isinstance(entry, Mapping) else entry
    return value if isinstance(value, str) else None
