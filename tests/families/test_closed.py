"""What a family does not say is refused: values of fields, targets, and what the section of another family covers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crossdock import delivery
from crossdock.cli import main
from crossdock.errors import ConfigError, CrossdockError, PlanError, UsageError
from crossdock.formats.stored import Source
from crossdock.model.config import DEFAULTS, FIELDS, FREE, IDLE, ModelConfig
from crossdock.model.expressions import expression
from crossdock.model.families import families, family, files
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides
from support.canonical_models import config_of

KJV = Path(__file__).parents[2] / "examples/tiny-kjv"
# Llama with one constant changed, as Granite, MiniCPM and Cohere are
SCALED = """
extends = "llama"
[fits]
scale_embedding = [true]
[megatron.read]
scale_embedding = "True"
"""
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "vocab_size": 203}
HF: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"model_type": "gpt2"},
    "starcoder": GPT2 | {"model_type": "gpt_bigcode"},
}
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file of a family called scaled; its path."""

    def written(text: str) -> str:
        (tmp_path / "scaled.toml").write_text(text)
        return str(tmp_path / "scaled.toml")

    return written


def folder(config: dict[str, Any]) -> Source:
    return Source("hf", Path("/model"), (), {}, config, "config.json")


# ---- fields


@pytest.mark.parametrize("name", families())
def test_a_field_that_no_family_names_must_have_its_default(name: str) -> None:
    """No family file knows of the field that is added here."""
    wider = dataclasses.make_dataclass(
        "Wider", [("sparkle", float, dataclasses.field(default=1.0))], bases=(ModelConfig,), frozen=True
    )
    values = config_of(name).as_dict()
    assert "sparkle" not in {problem.where for problem in family(name).misfits(wider(**values))}
    (problem,) = (one for one in family(name).misfits(wider(**values, sparkle=2.0)) if one.where == "sparkle")
    assert (problem.what, problem.expected, problem.got) == (f"family {name} does not fit", "1.0", "2.0")


@pytest.mark.parametrize("name", HF)
def test_a_sliding_window_of_a_gpt2_is_refused_with_its_origin(name: str) -> None:
    assert describe(folder(HF[name]), Overrides()).family.name == name
    with pytest.raises(ConfigError, match=f"sliding_window: family {name} does not fit") as caught:
        describe(folder(HF[name] | {"sliding_window": 7}), Overrides())
    (problem,) = caught.value.problems
    assert (problem.expected, problem.got) == ("None", "7")
    assert "sliding_window is from sliding_window in " in problem.cause


@pytest.mark.parametrize("name", families())
def test_every_line_of_fits_changes_what_the_family_may_be(name: str) -> None:
    table = files()[name].table
    parent = family(table["extends"]).requires if "extends" in table else {}
    for field in table.get("fits", {}):
        before = parent.get(field, () if field in FREE else (DEFAULTS[field],))
        assert family(name).requires.get(field) != before, field


def test_free_and_idle_fields_are_fields_with_a_reason() -> None:
    assert FREE.keys() | IDLE.keys() <= set(FIELDS)
    assert not FREE.keys() & IDLE.keys()
    assert all(FREE.values())
    for name, condition in IDLE.items():
        assert expression(condition, name).names <= set(FIELDS) - {name}


def test_an_idle_field_may_have_any_value() -> None:
    """Megatron's arguments hold a rotary_percent also where positions are learned."""
    said = {"partial_rotary_factor", "rope_type"}
    config = dataclasses.replace(config_of("gpt2"), position_embedding="learned", partial_rotary_factor=0.5)
    assert not said & {problem.where for problem in family("gpt2").misfits(config)}
    config = dataclasses.replace(config_of("llama"), partial_rotary_factor=0.5)
    assert said & {problem.where for problem in family("llama").misfits(config)} == {"partial_rotary_factor"}


# ---- targets


@pytest.mark.parametrize("target", ["gguf", "trtllm", "hf", "gguf-checkpoint"])
def test_a_family_is_written_only_where_it_says_so(target: str, write: Write) -> None:
    checkpoint = delivery.open(KJV, family=write(SCALED))
    assert checkpoint.config.scale_embedding
    with pytest.raises(PlanError, match="family scaled does not say how it is stored as") as caught:
        delivery.plan(checkpoint, target)
    (problem,) = caught.value.problems
    assert problem.where.endswith("/scaled.toml")
    assert 'like = "llama"' in problem.fix


@pytest.mark.parametrize("target", ["gguf", "trtllm", "hf"])
def test_the_section_of_another_family_covers_what_that_family_may_be(target: str, write: Write) -> None:
    checkpoint = delivery.open(KJV, family=write(SCALED + f'[{target}]\nlike = "llama"'))
    with pytest.raises(PlanError) as caught:
        delivery.plan(checkpoint, target)
    (problem,) = caught.value.problems
    assert problem.what == f"[{target}] of family scaled is like that of llama, which does not cover this value"
    assert (problem.where, problem.expected, problem.got) == ("scale_embedding", "False", "True")
    checkpoint = delivery.open(KJV, family=write(SCALED + f'[{target}]\nlike = "llama"\nholds = ["scale_embedding"]'))
    assert delivery.plan(checkpoint, target).tensors


def test_limits_come_along_with_what_a_section_is_like(write: Write) -> None:
    """qwen3_moe's [gguf] is like qwen3's, which takes no biases; what it adds itself it holds."""
    text = 'extends = "qwen3_moe"\n[fits]\nscale_embedding = [false, true]\n[gguf]\nlike = "qwen3_moe"\n'
    limits = family(write(text)).limits["gguf"]
    assert limits == {"scale_embedding": (False,)}
    checkpoint = config_of("qwen3_moe", num_experts=4, scale_embedding=True)
    (problem,) = family(write(text)).uncovered("gguf", checkpoint)
    assert problem.where == "scale_embedding"


@pytest.mark.parametrize("name", families())
def test_the_families_of_crossdock_hold_all_that_they_may_be(name: str) -> None:
    """A section that is like another's names every field in which the family differs."""
    assert not any(family(name).limits.values()), family(name).limits


def test_an_architecture_that_nobody_names_is_not_written(write: Write) -> None:
    checkpoint = delivery.open(KJV, family=write('extends = "llama"\n[megatron]\n[gguf]'))
    with pytest.raises(PlanError, match=r"does not say what to write for general\.architecture"):
        delivery.plan(checkpoint, "gguf")


def test_a_format_that_a_family_does_not_name_is_not_read_either(write: Write) -> None:
    with pytest.raises(ConfigError, match="family scaled does not say how it is stored as megatron"):
        delivery.open(KJV, family=write('extends = "llama"\n[gguf]\nlike = "llama"'))


# ---- a family in a file of one's own

FILES: dict[str, tuple[str, type[CrossdockError], str]] = {
    "not TOML": ("extends = ", ConfigError, "not a valid TOML file"),
    "nested too deep": ("a = " + "[" * 100_000, ConfigError, "not a valid TOML file"),
    "too long": ("# " + "a" * (1 << 20), ConfigError, "too long for a data file"),
    "no such parent": ('extends = "lama"', ConfigError, "unknown family"),
    "of itself": ('extends = "scaled"', ConfigError, "a circle"),
    "a parent that is not text": ("extends = [1]", ConfigError, "unknown family"),
}


@pytest.mark.parametrize(("text", "kind", "what"), FILES.values(), ids=FILES)
def test_what_is_wrong_in_a_file_names_it(text: str, kind: type[CrossdockError], what: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(kind, match=what) as caught:
        family(path)
    assert [problem.where for problem in caught.value.problems] == [path]


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError) as caught:
            family(f"{path}/" if path.is_dir() else str(path))
        assert caught.value.problems[0].where.startswith(str(path))


def test_a_file_with_the_name_of_a_registered_family(tmp_path: Path) -> None:
    (tmp_path / "llama.toml").write_text('extends = "llama"')
    with pytest.raises(ConfigError, match="family 'llama' is registered already"):
        family(str(tmp_path / "llama.toml"))


def test_a_changed_file_is_read_again(write: Write) -> None:
    assert "gguf" not in family(write(SCALED)).sections
    assert "gguf" in family(write(SCALED + '[gguf]\nlike = "llama"')).sections


def test_every_command_takes_a_file(tmp_path: Path, write: Write) -> None:
    own = ["--family", write('extends = "llama"\n[megatron]\n[gguf]\nlike = "llama"\n[hf]\nlike = "llama"')]
    out = str(tmp_path / "out.gguf")
    for words in (
        ["inspect", str(KJV), *own],
        ["plan", str(KJV), "--to", "gguf", *own],
        ["export", str(KJV), "--to", "gguf", "-o", out, "--no-progress", *own],
        ["verify", out, "--against", str(KJV), "--no-progress", *own],
        ["diff", str(KJV), out, "--no-progress", *own],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output)
    assert "scaled" in CliRunner().invoke(main, ["inspect", str(KJV), *own]).output
    assert delivery.open(KJV, family=own[1]).described.origins["family"] == "--family"
