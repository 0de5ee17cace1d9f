"""`crossdock formats` lists what the registries hold, and what it lists can be asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from crossdock.cli import main
from crossdock.codecs import registry as codecs
from crossdock.formats import registry
from crossdock.options import options_of
from crossdock.proof.engines import registry as logits
from crossdock.running.engines import registry as engines


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    result = CliRunner().invoke(main, ["formats", "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_all_that_is_registered_is_listed(listed: dict[str, Any]) -> None:
    names = {kind: [one["name"] for one in listed[kind]] for kind in ("sources", "targets", "codecs", "logits_engines")}
    assert names == {
        "sources": list(registry.names()),
        "targets": list(registry.targets()),
        "codecs": list(codecs.names()),
        "logits_engines": list(logits.names()),
    }
    assert listed["engines"] == list(engines.names())
    assert all(len(one["what"].split()) > 3 for kind in ("sources", "targets") for one in listed[kind])


def test_a_target_takes_the_dtypes_and_quantisations_that_are_listed(listed: dict[str, Any]) -> None:
    for one in listed["targets"]:
        kind = registry.options_type(one["name"])
        assert one["options"] == [option.flag for option in options_of(kind).values()]
        for dtype in one["dtypes"] if "dtype" in options_of(kind) else ():
            registry.made_target(one["name"], {"dtype": dtype})
        for quantisation in one["quantizations"]:
            registry.made_target(one["name"], {"quantize": quantisation})


def test_an_encoding_lists_the_targets_that_are_written_in_it(listed: dict[str, Any]) -> None:
    by_name = {one["name"]: one for one in listed["codecs"]}
    assert by_name["q8_0"] == {"name": "q8_0", "bits": 8.5, "encodes": True, "targets": ["gguf"]}
    assert set(by_name["bfloat16"]["targets"]) == {"gguf", "hf", "trtllm"}
    assert not by_name["int64"]["encodes"]


def test_people_see_the_same_names(listed: dict[str, Any]) -> None:
    text = CliRunner().invoke(main, ["formats"]).stdout
    assert [
        name for kind in ("sources", "targets", "codecs") for one in listed[kind] if (name := one["name"]) not in text
    ] == []
