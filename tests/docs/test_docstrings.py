"""What `crossdock` offers says in its docstrings what it takes and gives, one argument or field a line."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest

import crossdock
from crossdock import delivery, errors, summary

NAMES = [name for name in crossdock.__all__ if not name.startswith("__")]
SENTENCE = re.compile(r"[A-Z`][^\n]+[.:]")


def described(documented: str) -> dict[str, str]:
    """Name -> text of the lines that describe an argument or a field each."""
    return dict(re.findall(r"^(\w+)  +(\S.*)$", documented, re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_and_field_has_a_line(name: str) -> None:
    offered: Any = getattr(crossdock, name)
    documented = inspect.getdoc(offered) or ""
    assert SENTENCE.match(documented), documented
    if dataclasses.is_dataclass(offered):
        wanted = [field.name for field in dataclasses.fields(offered)]
    elif inspect.isclass(offered) and offered is not errors.CrossdockError:
        assert issubclass(offered, errors.CrossdockError)
        return
    elif inspect.isclass(offered):
        wanted = ["exit_code", "problems"]
    else:
        wanted = list(inspect.signature(offered).parameters)
        raised = re.search(r"\bRaises\b(.*)", documented, re.DOTALL)
        assert raised
        named = set(re.findall(r"\b[A-Z]\w+(?:Error|Problem|Failed)\b", raised[1]))
        assert named <= set(vars(errors))
        assert named or re.search("Raises what (`open` raises|these three raise)", documented)
    assert list(described(documented)) == wanted


@pytest.mark.parametrize("package", [crossdock, delivery, summary], ids=lambda package: package.__name__)
def test_no_name_of_a_package_is_that_of_a_module_in_it(package: ModuleType) -> None:
    """Importing a module would put it in the place of the name."""
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules.isdisjoint(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
