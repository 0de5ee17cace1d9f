"""Texts that tell tokenizers apart: runs of spaces and newlines, digits, scripts, emoji, code, control characters.

Two tokenizers that give the same ids for all of them split text alike; nothing here knows a tokenizer.
"""

HARD_TEXTS: tuple[str, ...] = (
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
)


def around(special: str) -> tuple[str, ...]:
    """A special token alone, and within text."""
    return special, f"one{special}two {special} three\n{special}{special}four"
