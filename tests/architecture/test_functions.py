"""Functions that a reader can hold in mind: few parameters, and a plan that is five steps from value to value."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from source_tree import SRC, modules

MOST_PARAMETERS = 8
COMPILED = ("crossdock.codecs.ggml_k_numba", "crossdock.codecs.ggml_legacy_numba")  # numba takes arrays, not objects
STEPS = ["containers", "sources", "encodings", "extras", "assemble"]


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def parameters(function: ast.FunctionDef) -> int:
    found = function.args
    named = [one.arg for one in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(found.vararg) + bool(found.kwarg)


def test_no_function_has_more_than_eight_parameters() -> None:
    wide = {f"{module}.{one.name}": parameters(one) for module, one in functions() if module not in COMPILED}
    assert len(wide) > 1000
    assert not {name: count for name, count in wide.items() if count > MOST_PARAMETERS}


def test_a_plan_is_made_in_five_named_steps() -> None:
    file = SRC / "crossdock/planning/planner.py"
    (made,) = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert made.name == "make_plan"
    assert (made.end_lineno or 0) - made.lineno < 25
    calls = [node.func.id for node in ast.walk(made) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [name for name in calls if name in STEPS] == STEPS or sorted(calls) == sorted(STEPS)
    assert not [name for name in calls if name not in STEPS]
    steps = {path.stem for path in (SRC / "crossdock/planning/steps").glob("*.py")} - {"__init__", "findings"}
    assert steps == {"assembly" if step == "assemble" else step for step in STEPS}


def test_nothing_but_the_codecs_looks_at_the_names_of_codecs() -> None:
    """`startswith("q")` and its kin: what must be known of a codec, it says itself."""
    asked = {"startswith", "endswith"}
    found = []
    for module, file in modules().items():
        if module.startswith(("crossdock.codecs", "crossdock_powerinfer")):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in asked:
                on = ast.unparse(node.func.value)
                if on.endswith(("dtype", "codec.name", "target.name", "quantize", "encoding.dtype")):
                    found.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert not found
