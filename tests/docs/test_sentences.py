"""The sentences that users read are gathered in sentences.txt, and keep to docs/style.md."""

from __future__ import annotations

import re

import pytest
from sentences import SNAPSHOT, gathered

LINES = gathered()
# what a native editor would not write, and what to write instead (docs/style.md)
IDIOM = {
    r"(?<!there )\b(is|are) no (?!longer\b)": "is not a",
    r"^there (is|are) no\b": "X does not exist, X is missing, unknown X",
    r"\bnothing reads\b": "unmapped",
    r"\b(is|are) (said|spelled|spelt|told)\b": "is recorded as, is written",
    r"\bfound out\b": "auto-detected",
    r"\bwithout a word\b": "silently",
    r"\bgoes? along\b": "is copied",
    r"\bof own\b|\bits own making\b": "custom",
    r"\bno (model|program|run|adapter) (has|wrote|writes)\b": "implausible, unknown",
    r"\banew\b": "again",
    r"\bis not there\b|\bare not there\b": "does not exist",
}


def test_the_snapshot_is_what_the_code_says() -> None:
    kept = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    new, gone = sorted(set(LINES) - set(kept)), sorted(set(kept) - set(LINES))
    assert (new, gone) == ([], []), "run scripts/sentences, and read what changed as a reader would"
    assert kept == LINES


@pytest.mark.parametrize("idiom", IDIOM, ids=IDIOM.get)
def test_no_sentence_has_private_idiom(idiom: str) -> None:
    assert [line for line in LINES if re.search(idiom, line, re.IGNORECASE)] == []


@pytest.mark.parametrize(
    "line",
    ["there is " + "no folder for the report", "args are " + "no namespace", "nothing " + "reads this"],
)
def test_idiom_would_be_found(line: str) -> None:
    assert any(re.search(idiom, line) for idiom in IDIOM)


def test_sentences_of_code_and_data_are_gathered() -> None:
    kept = set(LINES)
    assert "unmapped tensor: no layout rule uses it, so it would be dropped" in kept  # of a problem
    assert "unknown dtype or quantisation {…}" in kept  # with a hole
    assert "Format of the source. [default: auto-detected]" in kept  # of an option
    assert "llama.cpp's qwen3moe always normalises the chosen experts' weights" in kept  # of a data file
