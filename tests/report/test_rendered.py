"""The report in a real browser, headless Chromium: the script runs, nothing else does, nothing is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evidence import Evidence, failing, large

from crossdock.proof.report.page import render

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,2000")

pytestmark = pytest.mark.browser


def browse(*arguments: str) -> subprocess.CompletedProcess[str]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser is not None, "a browser is needed: apt-get install chromium, or leave out with -m 'not browser'"
    return subprocess.run(
        [browser, *FLAGS, *arguments], capture_output=True, text=True, errors="replace", timeout=120, check=True
    )


@pytest.mark.parametrize("make", [failing, large])
def test_it_renders(make: type[Evidence], tmp_path: Path) -> None:
    evidence = make()
    (tmp_path / "report.html").write_text(render(evidence), encoding="utf-8")
    url = f"file://{tmp_path}/report.html"
    document = browse("--dump-dom", "--enable-logging=stderr", url)
    assert document.stdout.count('type="search"') == 1  # made by the script
    assert f"Filter {len(evidence.report.tensors)} tensors" in document.stdout
    title = re.search(r"<title>(.*?)</title>", document.stdout)
    assert title is not None
    assert title[1].startswith("verified" if evidence.report.ok else "NOT EQUAL")  # a tensor's name did not change it
    assert "<img" not in document.stdout
    assert "Content Security Policy" not in document.stderr
    assert "Uncaught" not in document.stderr
    assert document.stdout.count("<button>") == 7  # a column's head orders the rows
    browse(f"--screenshot={tmp_path}/page.png", url)
    assert (tmp_path / "page.png").stat().st_size > 50_000  # an empty page of this size takes 8 kB


def test_a_click_orders_the_rows(tmp_path: Path) -> None:
    """By size, the largest first, then the smallest."""
    html = re.sub(r"<meta http-equiv.*?>", "", render(failing()))  # the page's policy allows no script but its own
    for clicks, expected in ((1, ["52,224", "52,224", "17,408", "17,408", "128"]), (2, ["128", "17,408"])):
        act = "document.querySelectorAll('#mapping button')[3].click();" * clicks
        page = tmp_path / "page.html"
        page.write_text(html.replace("</body>", f'<script type="module">{act}</script></body>'), encoding="utf-8")
        body = re.findall(r"<tr.*?</tr>", browse("--dump-dom", f"file://{page}").stdout.split('id="mapping"')[1])
        sizes = [re.findall(r'<td class="n">(.*?)</td>', row)[1] for row in body if "<td" in row]
        assert sizes[: len(expected)] == expected
