"""The HTML report: well formed, self-contained, text where model files say what they like; what it shows is right."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from evidence import HOSTILE, failing, large

import crossdock
from crossdock.cli import main
from crossdock.proof.report.page import Evidence, render
from crossdock.wording import clean

ROOT = Path(__file__).parents[2]
KJV, TOKENIZER = ROOT / "examples" / "tiny-kjv", ROOT / "examples" / "tiny-kjv-tokenizer"
VOID = {"meta", "input", "img", "br"}


class Page(HTMLParser):
    """Tags in balance, attributes, and text by the tag that holds it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [data for holder, data in self.texts if holder == tag]


@pytest.mark.parametrize("make", [failing, large])
def test_one_well_formed_file_that_fetches_nothing(make: type[Evidence]) -> None:
    html = render(make())
    page = Page(html)
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html


def test_what_model_files_say_is_text() -> None:
    html = render(failing())
    assert "<img" not in html
    assert html.count("<script") == 1
    assert "\u202e" not in html
    assert "\x07" not in html
    assert clean(HOSTILE) in Page(html).of("td")


def test_a_failing_report_says_what_is_wrong() -> None:
    page = Page(render(failing()))
    assert "✗ Not equal" in page.of("h1")
    assert "1 / 5" in page.of("dd")
    items = " ".join(page.of("li"))
    assert "41 / 42" in page.of("dd")
    assert "7 9" in page.of("td")
    for said in ("is different", "is missing", "is unexpected", "the relative distance is 0.2", "another",
                 "llama.cpp reads 1 text otherwise"):  # fmt: skip
        assert said in items
    assert (
        page.attributes.count(("class", "wrong-mark")) == 2
    )  # of the two tensors that have an error and are not equal


def test_a_large_report_has_every_tensor_and_position() -> None:
    page = Page(render(large()))
    assert page.tags.count("circle") == 1120 + 2 * 2000  # tensors that moved; two plots of positions
    assert page.tags.count("tr") > 1200
    assert "blk.79.part_13.weight" in page.of("td")


@pytest.mark.parametrize("with_text", [True, False])
def test_verify_writes_it(with_text: bool, tmp_path: Path) -> None:
    out, report = tmp_path / "kjv.gguf", tmp_path / "report.html"
    crossdock.export(KJV, out, "gguf", quantize="q8_0", tokenizer=TOKENIZER)
    asked = ["verify", out, "--against", KJV, "--tokenizer", TOKENIZER, "--report", report, "--no-progress"]
    asked += ["--logits", "In the beginning", "--tokens"] if with_text else []
    result = CliRunner().invoke(main, [str(word) for word in asked])
    assert result.exit_code == 0, result.output
    page = Page(report.read_text(encoding="utf-8"))
    assert "✓ Verified" in page.of("h1")
    assert ("What both compute" in page.of("h2")) == with_text
    assert ("How both read text" in page.of("h2")) == with_text
    assert "decoder.layers.self_attention.linear_qkv.weight" in page.of("div")
    assert "bfloat16" in page.of("td")
    assert "num_attention_heads" in page.of("td")
    assert not (tmp_path / "report.html.partial").exists()


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "hf"
    crossdock.export(KJV, out, "hf")
    asked = ["verify", out, "--against", KJV, "--report", tmp_path / "none" / "report.html", "--no-progress"]
    result = CliRunner().invoke(main, [str(word) for word in asked])
    assert result.exit_code == 4
    assert "the folder of the report does not exist" in result.stderr
