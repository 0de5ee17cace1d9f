"""ARCHITECTURE.md against the source: the direction of imports, the table of folders, what a layer must not know."""

from __future__ import annotations

import io
import itertools
import re
import tokenize
from graphlib import CycleError, TopologicalSorter

import pytest
from source_tree import ROOT, SRC, Import, folder, folders, imports, modules, strings

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
# from the lowest layer to the highest; a module may import from its own layer's folder and from layers below
LAYERS = (
    ("errors", "version", "wording", "plugins", "lazy"),
    ("options",),
    ("io", "model"),
    ("layout", "codecs", "unpickle"),
    ("torchfile", "tokenizers"),
    ("formats",),
    ("planning",),
    ("running",),
    ("proof",),
    ("delivery", "scan", "summary", "catalogue"),
    ("crossdock",),
    ("cli",),
    ("__main__", "crossdock_powerinfer"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# what the commands may use: the library's verbs, what may be asked of them, and what puts errors and numbers into words
VERBS = re.compile(
    r"crossdock(\.(delivery|scan|summary|catalogue|options|running\.options|formats\.registry|errors|wording|version|cli(\.\w+)?))?\Z"
)
FAMILIES = {path.stem for path in (SRC / "crossdock/data/families").glob("*.toml")}
LONGEST = 400


def shown(found: Import) -> str:
    return f"{found.module}:{found.line} imports {found.target}"


def test_every_folder_and_module_has_a_layer() -> None:
    assert {folder(module) for module in modules()} == set(LEVEL)


def test_imports_run_one_way() -> None:
    wrong = [
        shown(found)
        for found in imports()
        if folder(found.module) != folder(found.target) and LEVEL[folder(found.module)] <= LEVEL[folder(found.target)]
    ]
    assert not wrong


def test_no_two_modules_need_each_other() -> None:
    needed: dict[str, set[str]] = {module: set() for module in modules()}
    for found in imports():
        if not found.typing and modules()[found.target].name != "__init__.py":
            needed[found.module].add(found.target)
    try:
        TopologicalSorter(needed).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_document_says_the_direction_of_imports() -> None:
    sentence = re.search(r"Imports run one way: (.*?)\.\s", ARCHITECTURE, re.DOTALL)
    assert sentence
    steps = [re.findall(r"`([\w.]+)`", step) for step in sentence[1].split("→")]
    ranks = [[LEVEL[name] for name in step] for step in steps]
    assert all(min(upper) > max(lower) for upper, lower in itertools.pairwise(ranks))
    assert folders() <= {name for step in steps for name in step}


def test_the_table_of_folders_is_the_tree() -> None:
    table = ARCHITECTURE.partition("| folder | what is in it |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)) == folders() | {"data"}
    inner = re.findall(r"`(\w+)/`:|`(\w+)/` and `(\w+)/`", table)
    named = {name for names in inner for name in names if name}
    assert all(any((SRC / "crossdock" / top / name).is_dir() for top in folders()) for name in named)


def test_paths_in_the_document_exist() -> None:
    paths = re.findall(r"`((?:data|formats|codecs|running|proof|layout|model|planning|cli)/[\w./]+)`", ARCHITECTURE)
    assert paths
    assert [path for path in paths if not (SRC / "crossdock" / path).exists()] == []


def test_no_file_is_long() -> None:
    files = [file for top in ("src", "tests", "benchmarks", "powerinfer-dropin") for file in (ROOT / top).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_formats_know_no_models() -> None:
    """No text in the code of a format is a family's name, or the class name of one in other programs."""
    names = "|".join(sorted((re.escape(name.replace("_", "")) for name in FAMILIES), key=len, reverse=True))
    family = re.compile(rf"(?:{names})(?:forcausallm|lmheadmodel|model)?\Z")
    wrong = [
        f"{file.relative_to(SRC)}:{line}: {text!r}"
        for file in sorted((SRC / "crossdock/formats").rglob("*.py"))
        for line, text in strings(file)
        if family.match(text.lower().replace("_", ""))
    ]
    assert not wrong


def test_layouts_know_no_bytes() -> None:
    low = {"io", "codecs", "formats", "unpickle", "torchfile"}
    assert [
        shown(found) for found in imports() if folder(found.module) == "layout" and folder(found.target) in low
    ] == []


def test_identifiers_are_the_fields_words() -> None:
    """No name in the source says who said it: a value is an override, a stated key, an alias."""
    old = re.compile(r"(?:^|_)(?:said|told|given|spoken|spelled)(?:_|s?$)|Said|Told|Given|Spoken|Spelled")
    wrong = [
        f"{name}:{token.start[0]}: {token.string}"
        for name, file in modules().items()
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
        if token.type == tokenize.NAME and old.search(token.string)
    ]
    assert not wrong


def test_the_command_line_knows_no_logic() -> None:
    of_commands = [found for found in imports() if folder(found.module) == "cli" and not found.typing]
    assert of_commands
    assert [shown(found) for found in of_commands if not VERBS.match(found.target)] == []
