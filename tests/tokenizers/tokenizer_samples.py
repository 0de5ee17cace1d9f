"""Texts that tell tokenizers apart, and tokenizers trained on the small text that ships with the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers as hf

CORPUS = Path(__file__).parents[1] / "data" / "tokenizers" / "corpus.txt"

HARD_TEXTS = [
    "",
    " ",
    "  ",
    "   leading",
    "trailing   ",
    "a  b   c    d     e",
    "\n",
    "\n\n\n",
    " \n \n\n \t\t \n",
    "\ttab\t\ttabs \t mixed",
    "line one\nline two\r\nline three\r\rline four\n",
    "  \n  indented\n    more\n\n\n  end  ",
    "Hello, world! How's it going? They'RE here; I'LL go, we'Ve 'told' 'em O'Neil's rock'n'roll",
    "0 1 12 123 1234 12345 123456 1234567 12345678 3.14 1,000,000 1e-5 0x1F v2.0.1 2026-11-21T04:05:06Z",
    "½ ² ³ Ⅷ ①②③ ٣٤٥ १२३ 一二三 １２３",
    "CamelCase snake_case kebab-case SCREAMING_CASE mixedCASEWords iPhone McDonald's USA's HTTPServer2",
    "!!!???...,,,;;;:::---___===+++***&&&%%%$$$###@@@~~~```'''\"\"\"((()))[[[]]]{{{}}}<<<>>>|||\\\\\\///",
    "price: $5.99 (20% off!) #tag @user a&b c|d x^2 ~home `code` \"quoted\" 'single' a/b/c a\\b",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x ** 2 if x >= 0 else -x}\n\n\nprint(f(3))  # done\n",
    "\tif (a[i] != b->c && !d) {\n\t\treturn *p++;\n\t}\n",
    '<html><body class="x">&amp;</body></html><!-- note -->',
    "https://example.org/path/to?query=1&other=two#part user@mail.example",
    "größer Straße ÜBUNG Äpfel cœur naïve Ÿ ÀÉÎÕÜ ßẞ ǅ ŉ",
    "cafe\u0301 n\u0303 a\u0308\u0323 Å A\u030a \u0301alone e\u0301\u0301\u0301",
    "В начале сотворил Бог небо и землю, ЁЖИК ёжик",
    "Ἐν ἀρχῇ ὁ λόγος ΑΒΓ αβγ ς",
    "בראשית בָּרָא אלהים في البدء الْكَلِمَة ۱۲۳",
    "आदि में परमेश्वर ने क्षत्रिय ในปฐมกาล ກ្ಕ កាន់តែពិសេស",
    "起初，神创造天地。はじめに神は、カタカナもあります。태초에 하나님이! 漢字kanji混ぜmix字",
    "我想在apple工作1314151天～ 你好，world！「引用」『書名』（括弧）【】・",
    "😀 👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪🇫🇷 👍🏽 #️⃣ 🚀🚀🚀 a😀b",
    "→ ∑ ∫ ≠ ≤ √ ∞ € £ ¥ © ® ™ … “quoted” ‘single’ – — · • § ¶ †",
    "\u00a0nbsp\u00a0\u00a0two\u2003em\u3000ideographic\u200bzero\u200dzwj\ufeffbom\u2028line\u2029par\u0085nel",
    "\x00null\x01\x02\x1b[31mred\x7f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𐍈 𠀀 𓀀 ｆｕｌｌ　ｗｉｄｔｈ ﬁ ﬂ ℌ",
    "x" * 40 + " " * 40 + "\n" * 20 + "=" * 40 + "ab" * 20,
    "nonexistent rare wördß qzxjk Zażółć gęślą jaźń",
    "a\u0915\u094d\u0937b \u0e40\u0e01\u0e49\u0e32 \u1100\u1161\u11a8",
]


def hard_texts(special: tuple[str, ...] = ()) -> list[str]:
    """The hard texts, the lines of the corpus, and special tokens within text."""
    within = [f"{s}" for s in special] + [f"one{s}two {s} three\n{s}{s}four" for s in special]
    return [*HARD_TEXTS, *CORPUS.read_text(encoding="utf-8").splitlines(), *within]


def component(stage: str) -> dict[str, Any]:
    """A stage of `crossdock.tokenizers.pre_tokenizers` as the JSON of huggingface/tokenizers."""
    kind, _, rest = stage.partition(" ")
    if kind == "punctuation":
        return {"type": "Punctuation", "behavior": rest.capitalize()}
    return {"type": "Split", "pattern": {"Regex": rest}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool = False) -> dict[str, Any]:
    """The ByteLevel component as byte-level tokenizers have it."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def train_bpe(
    stages: list[dict[str, Any]], *, size: int = 700, special: tuple[str, ...] = ("<|endoftext|>",)
) -> dict[str, Any]:
    """The JSON of a byte-level BPE trained on the corpus, split by `stages`; special tokens come last."""
    trained = hf.Tokenizer(hf.models.BPE())
    blank = json.loads(trained.to_str())
    blank["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": stages}
    blank["decoder"] = byte_level(True)
    trained = hf.Tokenizer.from_str(json.dumps(blank))
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train([str(CORPUS)], trainer)
    trained.add_special_tokens(list(special))
    result: dict[str, Any] = json.loads(trained.to_str())
    return result


def save(folder: Path, **files: Any) -> Path:
    """Write files given as NAME_ext=content (`tokenizer_json={...}`); objects become JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, extension = re.fullmatch(r"(.+)_([a-z]+)", name).groups()  # type: ignore[union-attr]
        path = folder / f"{stem}.{extension}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
    return folder
