"""The files that golden records are kept in: sorted, one fact a line, and stored once where cases share it.

readings.json    fields and ignored keys by case; a case that is like another has what differs (None: not there)
origins.json     where each field is from, by case, in the same way
plans.json       digests by case and target
sentences.json   notices, warnings and refusals: each sentence once, with the targets and cases that show it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden_cases import Case

Record = dict[str, Any]
HERE = Path(__file__).parent
SENTENCES = ("notices", "warnings", "left out", "refused")
PARTS = ("fields", "ignored", "origins", "plans", *SENTENCES)
FILES = {"readings": ("fields", "ignored"), "origins": ("origins",), "plans": ("plans",)}


def store(records: Mapping[str, Record], cases: Mapping[str, Case]) -> None:
    """Write what is kept of every case."""
    for file, parts in FILES.items():
        stored: dict[str, Record] = {name: {} for name in records}
        for part in parts:
            for name, values in _shared({name: record[part] for name, record in records.items()}, cases).items():
                stored[name][part] = values
        _write(file, stored if len(parts) > 1 else {name: record[parts[0]] for name, record in stored.items()})
    _write("sentences", {part: _by_sentence(part, records) for part in SENTENCES})


def kept() -> dict[str, Record]:
    """What is kept of every case, whole, as `recorded` gives it."""
    records: dict[str, Record] = {}
    for file, parts in FILES.items():
        stored = _read(file)
        for part in parts:
            by_case = {name: record[part] if len(parts) > 1 else record for name, record in stored.items()}
            for name in by_case:
                records.setdefault(name, {part: {} for part in PARTS})[part] = _whole(name, by_case)
    for part, sentences in _read("sentences").items():
        for sentence, by_place in sentences.items():
            for place, names in by_place.items():
                for name in names:
                    records[name][part][sentence] = place
    return records


def _by_sentence(part: str, records: Mapping[str, Record]) -> dict[str, dict[str, list[str]]]:
    out: dict[str, dict[str, list[str]]] = {}
    for name, record in records.items():
        for sentence, place in record[part].items():
            out.setdefault(sentence, {}).setdefault(place, []).append(name)
    return {sentence: {place: sorted(names) for place, names in places.items()} for sentence, places in out.items()}


def _shared(values: Mapping[str, Record], cases: Mapping[str, Case]) -> dict[str, Record]:
    """The values of each case; where most of them are those of a case of the same format, what differs from it.

    A variant refers to the case that it is a variant of, others to one that is stored whole.
    """
    whole: list[str] = []
    out: dict[str, Record] = {}
    for name, own in values.items():
        group = name.partition("/")[0]
        others = [cases[name].like] if cases[name].like else [one for one in whole if one.partition("/")[0] == group]
        changes = {other: _difference(own, values[other]) for other in others}
        nearest = min(changes, key=lambda other: len(changes[other]), default="")
        if nearest and 2 * len(changes[nearest]) < len(own):
            out[name] = {"(like)": nearest, **changes[nearest]}
        else:
            out[name] = own
            whole.append(name)
    return out


def _whole(name: str, stored: Mapping[str, Record]) -> Record:
    own = dict(stored[name])
    other = own.pop("(like)", None)
    merged = own if other is None else {**_whole(other, stored), **own}
    return {key: value for key, value in merged.items() if value is not None}


def _difference(new: Mapping[str, Any], old: Mapping[str, Any]) -> Record:
    return {key: new.get(key) for key in new.keys() | old.keys() if new.get(key) != old.get(key)}


def _write(file: str, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    (HERE / f"{file}.json").write_text(text + "\n")


def _read(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{file}.json").read_text())
    return found
