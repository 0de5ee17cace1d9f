"""Data files of families and layouts are read strictly; every complaint names the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from crossdock import plugins
from crossdock.errors import ConfigError, UsageError
from crossdock.layout.rules import family_stated, layout, layout_names
from crossdock.model import families
from support.canonical_models import UNHELD, UNPLACED

Add = Callable[[str, str], None]
FAMILY = """
[axes]
vocab = "vocab_size"
embed = "hidden_size"
layer = "num_hidden_layers"
[tensors]
embed = "vocab embed"
norm = "layer embed"
"""
STRANGE = """
[tensors]
embed = 'E : vocab embed'
norm = 'n.{layer} : embed'
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Writes a data file into a folder that a third party has registered: add("families/odd", text)."""
    folders = {f"crossdock.{kind}": tmp_path / kind for kind in ("families", "layouts")}
    for folder in folders.values():
        folder.mkdir()

    def registered(group: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(load=lambda: folders[group])] if group in folders else []

    monkeypatch.setattr(plugins, "registered", registered)

    def forget() -> None:
        families.files.cache_clear()
        for cached in (layout, layout_names, family_stated):
            cached.cache_clear()

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.toml").write_text(text)
        forget()

    forget()
    yield write
    forget()


def test_a_third_party_adds_a_family_and_a_layout(add: Add) -> None:
    add("families/odd", FAMILY + "[strange.tensors]\nembed = 'E : vocab embed'")
    add("layouts/strange", "[tensors]\nnorm = 'n.{layer} : embed'\nother = 'o : x y'")
    chosen = families.family("odd")
    assert {rule.tensors for rule in layout("strange", chosen).rules} == {("norm",), ("embed",)}
    assert "llama" in families.families()


FAMILIES = [
    ("[axes", "not a valid TOML file"),
    (FAMILY + 'embed = "vocab"', "not a valid TOML file"),
    ("[tensors]\nembed = 'vocab embed'", "tensor 'embed' has the axis 'vocab', which [axes] does not define"),
    (FAMILY + "twice = 'embed embed'", "tensor 'twice' has the axis 'embed' twice"),
    (FAMILY + "odd = 'embed:moe'", "'embed:moe', but only the axis layer has kinds"),
    (FAMILY + "odd = 'layer:some embed'", "layers 'some', which [layers] does not define"),
    (FAMILY + "odd = { axis = 'embed' }", "needs axes, may have when and same_as; has ['axis']"),
    (
        FAMILY + "odd = { axes = 'embed', same_as = 'nothing' }",
        "the same as 'nothing', which [tensors] does not define",
    ),
    (FAMILY + "odd = { axes = 'embed', when = 'colour' }", "names 'colour', which is not a field"),
    (FAMILY + "odd = { axes = 'embed', when = 'hidden_size +' }", "does not parse"),
    (FAMILY + "odd = { axes = 'embed', when = 'hidden_size.real' }", "Attribute, which is not allowed"),
    (FAMILY + "[layers]\nsome = 'colour'", "some = colour names 'colour', which is not a field"),
    (FAMILY + "[layers]\nsome = 3", "[layers] some is of the wrong type"),
    (FAMILY + "odd = 3", "[tensors] odd is of the wrong type"),
    (FAMILY + "[fits]\ncolour = [1]", "[fits] names 'colour', which is not a field"),
    (FAMILY + "[fits]\nnorm = 'rms'", "[fits] norm is of the wrong type"),
    ("extends = 'nothing'", "extends 'nothing': unknown family"),
    ("extends = 'odd'", "extends 'odd': a circle"),
    ("colour = 1\n" + FAMILY, "unknown keys colour"),
    ("extends = 'llama'\n[tensors]\nattn_p = ''", '[tensors] attn_p = "" removes nothing'),
    ("extends = 'llama'\n[fits]\nnorm = ''", '[fits] norm = "" removes nothing'),
    (FAMILY + "[gguf]\nlike = 'nothing'", "[gguf] like 'nothing': unknown family"),
    (FAMILY + "[gguf]\nlike = 'odd'", "[gguf] like 'odd': a circle"),
    (FAMILY + "[gguf]\nlike = 3", "[gguf] like is the name of a family, holds a list of fields"),
    (FAMILY + "[gguf]\nlike = 'llama'\nholds = 'norm'", "[gguf] like is the name of a family, holds a list of fields"),
    (FAMILY + "[peft]\nlike = 'llama'", "[peft] like 'llama': families/llama.toml has no [peft]"),
    (FAMILY + "[gguf]\nholds = ['norm']", "[gguf] holds means something beside like only"),
    (FAMILY + "[gguf]\nlike = 'llama'\nholds = ['norm']", "the family does not differ from llama in it"),
]


@pytest.mark.parametrize(("text", "what"), FAMILIES, ids=[what for _, what in FAMILIES])
def test_a_wrong_family_file(text: str, what: str, add: Add) -> None:
    add("families/odd", text)
    with pytest.raises(ConfigError) as caught:
        families.families()
    assert what in str(caught.value)
    assert all(problem.where == "families/odd.toml" for problem in caught.value.problems)


def test_a_family_that_exists_already(add: Add) -> None:
    add("families/llama", FAMILY)
    with pytest.raises(ConfigError, match=r"llama\.toml: family 'llama' is defined twice"):
        families.families()


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean --family llama") as caught:
        families.family("lama")
    assert "mistral, mixtral" in caught.value.problems[0].expected


LAYOUTS = [
    ("[tensors", "not a valid TOML file"),
    ("[tensors]\nnorm = 'a : layer embed'\nnorm = 'b : layer embed'", "not a valid TOML file"),
    ("colour = 1", "unknown keys colour"),
    ("extends = 'nothing'", "no layout for format 'nothing'"),
    ("extends = 'strange'", "extends 'strange': a circle"),
    ("[tensors]\nnorm = 'a : embed'", "norm is not placed whole"),
    ("[tensors]\nnorm = 'a.{layer} : embed vocab'", "norm is not placed whole"),
    ("[tensors]\nnorm = 'a.{layer} : layer embed'", "axis 'layer' is placed twice"),
    ("[tensors]\nnorm = 'a.{layer} : (embed'", "unclosed"),
    ("[tensors]\nnorm = { to = 'a.{layer} : embed' }", "a rule has `at` and perhaps map, scale, offset, when, stage"),
    ("[tensors]\nnorm = { at = 'a.{layer} : embed', part = 'expert' }", "[parts] does not define 'expert'"),
    ("[tensors]\nnorm = { at = 'a.{layer} : embed', stage = 'middle' }", "unknown stage 'middle'"),
    ("[tensors]\n'embed norm' = 'a.{layer} : embed'", "several tensors need a bracket"),
    ("[tensors]\nnorm = 'a.{layer} : [embed:vocab*embed norm:embed]'", "the bracket holds embed norm"),
    ("[read]\ncolour = 'colour'", "[read] colour: not a field of the configuration"),
    ("[read]\nnorm = 'a ** b'", "BinOp, which is not allowed"),
    ("[read]\nnorm = 1", "[read] norm is of the wrong type"),
    ("[fits]\ncolour = [1]", "[fits] colour: not a field of the configuration"),
    ("[only_values]\ncolour = 1", "[only_values] colour is of the wrong type"),
    ("[tensors]\n'norm ' = 'a.{layer} : embed'", "extra blanks in a key"),
    ("[read]\nnorm = []", "an empty list of alternatives"),
    ("[read]\nnorm = { when = 'a' }", "a table without `value` and without keys"),
    ("[read]\nnorm = { value = 'a', colour = 'b' }", "beside `value` there may be `when`, not colour"),
    ("[read]\nnorm = ['a', 1]", "1 is not an expression in quotes, nor a table"),
    ("[write]\na = { for = 'i of n', b = 'i' }", "for = 'i of n'"),
    ("[write]\na = ['UINT32 : 1 @ norm', '2']", "alternatives with and without a type"),
    ("[refused]\na = { say = 'b' }", "[refused] a: has say"),
    ("[needs]\na = { say = 'b', must = 'colour == 1' }", "[needs] a: colour: not a field of the configuration"),
    ("[tensors]\nnorm = 'a.{layer@colour} : embed'", "[numbers] does not define colour"),
    ("[tensors]\nnorm = 'a[.{layer@colour}] : embed'", "'layer@colour' is not axis or axis/rank"),
    ("ignored = ['colour']", "[ignored] is not a table"),
]


@pytest.mark.parametrize(("text", "what"), LAYOUTS, ids=[what for _, what in LAYOUTS])
def test_a_wrong_layout_file(text: str, what: str, add: Add) -> None:
    add("families/odd", FAMILY + "[strange]")
    add("layouts/strange", text)
    with pytest.raises(ConfigError) as caught:
        layout("strange", families.family("odd"))
    assert what in str(caught.value)
    assert all(problem.where.startswith("layouts/strange.toml") for problem in caught.value.problems)


@pytest.mark.parametrize("name", sorted(families.families()))
@pytest.mark.parametrize("format_name", ["hf", "gguf", "megatron", "megatron_rank"])
def test_the_files_of_crossdock_are_right(name: str, format_name: str) -> None:
    if (format_name, name) in UNHELD:
        with pytest.raises(ConfigError, match=f"family {name} does not say how it is stored as {format_name}"):
            layout(format_name, families.family(name))
        return
    rules_of = layout(format_name, families.family(name))
    placed = {tensor for rule in rules_of.rules for tensor in rule.tensors}
    if name == "llama_lora":  # an adapter, which formats of models do not hold
        assert not placed
        return
    shared = {"nextn_embed", "nextn_head"} if format_name.startswith("megatron") else set()  # it has the model's own
    assert placed == set(families.family(name).tensors) - {UNPLACED.get((format_name, name), "")} - shared


def test_a_removal_that_removes_nothing_names_section_and_family(add: Add) -> None:
    add("families/odd", FAMILY + "[strange.tensors]\nnrom = ''")
    add("layouts/strange", "[tensors]\nnorm = 'n.{layer} : embed'")
    with pytest.raises(ConfigError, match=r'odd\.toml \[strange\]: \[tensors\] nrom = "" removes nothing'):
        layout("strange", families.family("odd"))


def test_a_section_that_is_like_anothers_is_like_its_ranks_too(add: Add) -> None:
    add("families/odd", "extends = 'deepseek_v3'\n[megatron]\nlike = 'deepseek_v3'")
    layout("megatron", families.family("odd"))
    with pytest.raises(ConfigError, match=r"that of deepseek_v3, which has a section \[megatron_rank\] besides"):
        layout("megatron_rank", families.family("odd"))


def test_a_layout_names_families_that_it_holds_as_it_is(add: Add) -> None:
    add("families/odd", FAMILY)
    add("layouts/strange", "families = ['odd']\n[tensors]\nnorm = 'n.{layer} : embed'")
    assert [rule.tensors for rule in layout("strange", families.family("odd")).rules] == [("norm",)]
    with pytest.raises(ConfigError, match="family llama does not say how it is stored as strange"):
        layout("strange", families.family("llama"))


def test_a_section_for_an_unknown_format_is_an_error(add: Add) -> None:
    add("families/odd", FAMILY + "[ggfu]\n[hf]")
    with pytest.raises(ConfigError, match=r"unknown format \[ggfu\]") as caught:
        layout("hf", families.family("odd"))
    assert "gguf" in caught.value.problems[0].expected


def test_an_axis_may_have_any_name(add: Add) -> None:
    """Axes called as the words of a rule are inherited like others."""
    add("families/base", FAMILY.replace("[tensors]", "value = 'head_dim'\nat = 'head_dim'\n[tensors]"))
    add("families/odd", "extends = 'base'\n[axes]\nembed = 'head_dim'")
    assert set(families.family("odd").axes) == {"vocab", "embed", "layer", "value", "at"}


@pytest.mark.parametrize(
    "content",
    ["{ only = [1] }", "{ only = 1, say = 'x' }", "{ only = [1], say = 'x', why = 'y' }"],
)
def test_a_restriction_is_a_list_or_a_list_with_its_reason(add: Add, content: str) -> None:
    add("layouts/strange", STRANGE)
    add("families/odd", FAMILY + f"[strange.fits]\nn_group = {content}")
    with pytest.raises(ConfigError, match="has only") as caught:
        layout("strange", families.family("odd"))
    assert "[fits] n_group" in caught.value.problems[0].where


def test_a_restriction_with_its_reason_is_inherited_and_removed_as_one(add: Add) -> None:
    add("layouts/strange", STRANGE)
    add("families/base", FAMILY + "[strange.fits]\nn_group = { only = [1], say = 'no groups' }")
    add("families/odd", FAMILY + "[strange]\nlike = 'base'\n[strange.fits]\nn_group = ''")
    (one,) = layout("strange", families.family("base")).writing.fits
    assert (one.field, one.only, one.sentence) == ("n_group", (1,), "no groups")
    assert layout("strange", families.family("odd")).writing.fits == ()
