"""What is read of every golden case and what its plans do is what it was: refactoring must change neither.

Cases are every family in every format that has it (`golden_cases.py`); `golden_records.py` says what is kept of each.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossdock import delivery

sys.path.insert(0, str(Path(__file__).parent))
from golden_cases import TARGETS, Case, unpacked
from golden_files import PARTS, kept
from golden_records import digests, recorded

from support.canonical_models import TRAINED

GOLDEN = kept()
HOW = "if the change is meant: PYTHONPATH=src python tests/golden/regenerate.py, and look at its diff"
# a Mistral as GGUF or in TensorRT-LLM is a Llama, and adapters have targets of their own
OTHERS = {"gpt", "gptnext", "llama_2023", "llama_lora", "mistral"}
TRTLLM = {"falcon", "gemma", "gpt2", "llama", "mixtral", "nemotron", "qwen2", "starcoder"}
# format of the source -> the families that have a plan from it
FAMILIES = {  # families that Megatron does not know have recorded cases in tests/families instead
    "megatron": TRAINED - {"llama_2023", "llama_lora"},
    "hf": TRAINED - OTHERS | {"mistral"},
    "gguf": TRAINED - OTHERS,
    "trtllm": TRTLLM,
    "ggml": {"llama", "llama_lora"},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every case by name, its source unpacked; never write there."""
    return unpacked(tmp_path_factory.mktemp("golden"))


def changes(got: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two records, one line for each field, key, target and sentence."""
    for part in PARTS:
        for name in sorted(got[part].keys() | want[part].keys()):
            is_now, was = got[part].get(name), want[part].get(name)
            if is_now != was:
                yield f"{part}: {name}: was {was or 'not there'}, is {is_now or 'not there'}"


def test_every_case_is_kept(cases: dict[str, Case]) -> None:
    assert sorted(cases) == sorted(GOLDEN), HOW


@pytest.mark.parametrize("group", FAMILIES)
def test_every_family_of_a_format_is_planned(group: str) -> None:
    records = [record for name, record in GOLDEN.items() if name.partition("/")[0] == group]
    assert {json.loads(record["fields"]["family"]) for record in records if record["plans"]} == FAMILIES[group]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_what_is_read_and_planned_is_golden(name: str, cases: dict[str, Case]) -> None:
    changed = list(changes(recorded(cases[name]), GOLDEN[name]))
    assert not changed, "\n".join([f"{name} changed:", *changed, HOW])


@pytest.mark.parametrize(
    "name", ["megatron/qwen3-v019-dist-tp2pp2-fp32", "megatron/qwen2-v019-legacy-tp2-fp32", "hf/qwen3", "gguf/qwen3"]
)
def test_neither_place_nor_time_of_the_files_is_kept(
    name: str, tmp_path: Path, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cases[name].path
    moved = tmp_path / "elsewhere" / path.name
    moved.parent.mkdir()
    (shutil.copytree if path.is_dir() else shutil.copy)(path, moved)  # type: ignore[operator]
    for file in (moved, *moved.rglob("*")):
        os.utime(file, (1, 1))
    assert not list(changes(recorded(replace(cases[name], path=moved)), GOLDEN[name]))
    monkeypatch.chdir(moved.parent)
    assert not list(changes(recorded(replace(cases[name], path=Path(path.name))), GOLDEN[name]))


def test_what_is_asked_for_is_in_a_digest(cases: dict[str, Case]) -> None:
    checkpoint = delivery.open(cases["megatron/qwen3-v019-dist-tp2pp2-fp32"].path)
    plans = [delivery.plan(checkpoint, **options) for options in TARGETS.values()]
    assert len({digests(plan) for plan in plans}) == len({plan.digest for plan in plans}) == len(plans)
    small = delivery.plan(checkpoint, "hf", dtype="float32", max_shard_size=100_000)
    assert digests(small) != digests(plans[0])


def test_a_changed_key_shows_as_the_fields_that_it_changes(cases: dict[str, Case]) -> None:
    name = "hf/llama"
    changed = replace(cases[name], changed={"rms_norm_eps": 0.5, "use_cache": None})
    found = list(changes(recorded(changed), GOLDEN[name]))
    assert "fields: norm_eps: was 1e-06, is 0.5" in found
    assert {line.partition(":")[0] for line in found} == {"fields", "plans"}
