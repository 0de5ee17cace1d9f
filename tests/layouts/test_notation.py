"""The parser of the notation: every mark read, every mistake answered with a caret under it."""

from __future__ import annotations

import pytest

from crossdock.errors import ConfigError
from crossdock.layout.notation import Atom, Bracket, parse


def atoms(*axes: str) -> tuple[tuple[Atom, ...], ...]:
    """Dimensions of one whole axis each."""
    return tuple((Atom(axis),) for axis in axes)


def test_plain_dimensions() -> None:
    pattern = parse("a.weight : vocab embed")
    assert pattern.literals == ("a.weight",)
    assert pattern.indices == ()
    assert pattern.dims == atoms("vocab", "embed")
    assert pattern.parts == ()
    assert pattern.spell(()) == "a.weight"


def test_several_axes_in_one_dimension() -> None:
    assert parse("q : (group head half pair) embed").dims == (
        (Atom("group"), Atom("head"), Atom("half"), Atom("pair")),
        (Atom("embed"),),
    )


def test_indices_in_the_name() -> None:
    pattern = parse("layers.{layer/vpp/pp}.experts.{expert/ep}.w : ffn/etp embed")
    assert pattern.indices == (Atom("layer", ("vpp", "pp")), Atom("expert", ("ep",)))
    assert pattern.dims == ((Atom("ffn", ("etp",)),), (Atom("embed"),))
    assert pattern.spell((3, 12)) == "layers.3.experts.12.w"
    assert str(pattern.indices[0]) == "layer/vpp/pp"


def test_a_bracket_in_a_group_in_a_dimension_and_alone() -> None:
    in_group = parse("qkv : (group/tp [q:head k: v:] half pair) embed")
    bracket = Bracket((("q", (Atom("head"),)), ("k", ()), ("v", ())))
    assert in_group.dims[0] == (Atom("group", ("tp",)), bracket, Atom("half"), Atom("pair"))
    assert in_group.parts == ("q", "k", "v")
    assert [str(a) for a in in_group.atoms("q")] == ["group/tp", "head", "half", "pair", "embed"]
    assert [str(a) for a in in_group.atoms("k")] == ["group/tp", "half", "pair", "embed"]
    alone = parse("c_attn : embed [q:group*head k:group]")
    assert alone.dims[1] == (Bracket((("q", (Atom("group"), Atom("head"))), ("k", (Atom("group"),)))),)


def test_an_axis_may_be_in_every_part_of_a_bracket() -> None:
    assert parse("x : ([gate:ffn/tp up:ffn/tp]) embed").parts == ("gate", "up")


MISTAKES = [
    ("a.weight", "no ' : ' between name and shape", ""),
    ("a.weight: vocab", "no ' : ' between name and shape", ""),
    (" : vocab", "a name is one word", " : vocab"),
    ("a b : vocab", "a name is one word", " b : vocab"),
    ("a.{layer : vocab", "a name is one word", "{layer : vocab"),
    ("a.layer} : vocab", "a name is one word", "} : vocab"),
    ("a : ", "no dimensions", ""),
    ("a.{Layer} : vocab", "'Layer' is not axis or axis/rank", "Layer} : vocab"),
    ("a.{} : vocab", "'' is not axis or axis/rank", "} : vocab"),
    ("a : vocab emb-ed", "'emb-ed' is not axis or axis/rank", "emb-ed"),
    ("a : vocab/ embed", "'vocab/' is not axis or axis/rank", "vocab/ embed"),
    ("a : (vocab (embed))", "'(' inside '('", "(embed))"),
    ("a : () embed", "')' without axes before it", ") embed"),
    ("a : vocab) embed", "')' without axes before it", ") embed"),
    ("a : (vocab embed", "unclosed '(' or '['", ""),
    ("a : [x:vocab y:vocab", "unclosed '(' or '['", ""),
    ("a : [x:vocab] [y:vocab]", "a second '['", "[y:vocab]"),
    ("a : ([x:vocab] [y:vocab])", "a second '['", "[y:vocab])"),
    ("a : [x:vocab [y:vocab]]", "a second '['", "[y:vocab]]"),
    ("a : []", "']' without tensors before it", "]"),
    ("a : vocab]", "']' without tensors before it", "]"),
    ("a : [vocab]", "inside '[' every entry is tensor:axis*axis", "vocab]"),
    ("a : [X:vocab]", "inside '[' every entry is tensor:axis*axis", "X:vocab]"),
    ("a : [x:voc-ab]", "'voc-ab' is not axis or axis/rank", "x:voc-ab]"),
    ("a : [x:vocab (y:vocab)]", "'(' inside '['", "(y:vocab)]"),
    ("a : (vocab [x:half ) y:half]", "')' inside '['", ") y:half]"),
    ("a : [x:vocab x:half]", "tensor 'x' is in the bracket twice", "x:half]"),
    ("a : vocab vocab", "axis 'vocab' is placed twice", "vocab"),
    ("a.{layer} : layer layers", "axis 'layer' is placed twice", "layer layers"),
    ("a : pair [x:pair y:]", "axis 'pair' is placed twice", "pair y:]"),
]


@pytest.mark.parametrize(("text", "what", "rest"), MISTAKES, ids=[text for text, _, _ in MISTAKES])
def test_a_mistake_is_named_and_pointed_at(text: str, what: str, rest: str) -> None:
    """`rest` is what stands above the caret and after it."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    sentence, line, caret = str(caught.value).split("\n")
    assert sentence.startswith(what)
    assert line == f"  {text}"
    assert caret.strip() == "^"
    assert caret.index("^") - 2 == len(text) - len(rest)
