"""The guides as a reader follows them: every command of a page runs, in order, on the example checkpoint."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from crossdock import delivery
from crossdock.catalogue import known_families
from crossdock.cli.app import main
from crossdock.model.families import families

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / f"{page}.md" for page in ("index", "proof", "safety", "memory")]
GUIDES = sorted([*DOCS.glob("sources/*.md"), *DOCS.glob("targets/*.md"), *PAGES])
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^\| (?P<called>.+?) \| `(?P<name>\w+)` \| (?P<cells>.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has before the first command of a page, under the names that the pages use."""
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("stage")
    (folder / "runs").mkdir()
    (folder / "runs" / "my-model").symlink_to(ROOT / "examples" / "tiny-kjv")
    with tarfile.open(ROOT / "tests/data/megatron/masters.tar.xz") as archive:  # a run in bf16 with its optimizer
        inside = [one for one in archive.getmembers() if one.name.startswith("dp2-flat")]
        archive.extractall(folder / "unpacked", inside, filter="data")
    (folder / "runs" / "my-bf16-model").symlink_to(folder / "unpacked" / "dp2-flat")
    (folder / "tok").symlink_to(ROOT / "examples" / "tiny-kjv-tokenizer")
    model, tokenizer = folder / "runs" / "my-model", folder / "tok"
    delivery.export(model, folder / "my-model-hf", to="hf", tokenizer=tokenizer)
    delivery.export(model, folder / "my-model.gguf", to="gguf", tokenizer=tokenizer)
    delivery.export(model, folder / "trt", to="trtllm", tp=2, dtype="bf16", tokenizer=tokenizer)
    weights = load_file(folder / "my-model-hf" / "model.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, folder / "state.pt")
    _adapter(folder / "my-adapter", weights)
    dcp.save({"model": weights}, checkpoint_id=folder / "fsdp-step-9000", no_dist=True)
    return folder


def _adapter(folder: Path, weights: dict[str, Any]) -> None:
    """A LoRA of rank 2 on the query projections of `weights`, as peft writes it."""
    import torch
    from safetensors.torch import save_file

    pairs = {}
    for name in (name for name in weights if name.endswith("q_proj.weight")):
        rows, columns = weights[name].shape
        module = f"base_model.model.{name.removesuffix('.weight')}"
        pairs |= {
            f"{module}.lora_A.weight": torch.ones(2, columns),
            f"{module}.lora_B.weight": torch.ones(rows, 2) / 64,
        }
    folder.mkdir()
    save_file(pairs, folder / "adapter_model.safetensors")
    keys = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(keys))


def commands(page: Path) -> Iterator[list[str]]:
    for body in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] == "crossdock", f"a block of sh holds commands of crossdock only: {line}"
                yield words[1:]


def bring(stage: Path, here: Path, words: list[str]) -> None:
    """Place what a command names and no earlier one made."""
    made = words[words.index("-o") + 1] if "-o" in words else None
    for word in words:
        top = Path(word).parts[0] if word != made and not word.startswith("-") else ""
        if top and (stage / top).exists() and not (here / top).exists():
            if (stage / top).is_symlink() or top == "runs":
                (here / top).symlink_to(stage / top)
            else:
                for file in stage.glob(f"{top}*"):
                    (shutil.copytree if file.is_dir() else shutil.copy)(file, here / file.name)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_command_of_a_guide_runs(
    page: Path, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = list(commands(page))
    assert shown
    for words in shown:
        bring(stage, tmp_path, words)
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"crossdock {shlex.join(words)}\n{result.output}"


def written_page() -> str:
    """docs/models.md as scripts/models writes it now."""
    code = "import runpy; print(runpy.run_path('scripts/models')['page'](), end='')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def test_the_list_of_models_is_that_of_the_families() -> None:
    assert (DOCS / "models.md").read_text(encoding="utf-8") == written_page(), "run scripts/models"


def test_every_family_has_a_name_that_people_use() -> None:
    called = tomllib.loads((DOCS / "models.toml").read_text(encoding="utf-8"))
    assert set(called) >= {one.name for one in known_families()}
    assert set(called) <= set(families()), "docs/models.toml names families that do not exist"


def test_the_front_page_says_of_models_what_the_list_says() -> None:
    def rows(path: Path) -> dict[str, str]:
        return {row["name"]: row["cells"] for row in CELL.finditer(path.read_text(encoding="utf-8"))}

    front, listed = rows(ROOT / "README.md"), rows(DOCS / "models.md")
    assert len(front) >= 10
    assert front == {name: listed[name] for name in front}


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "src").symlink_to(ROOT / "src")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "out" / "site"
    assert [page for page in GUIDES if not (site / page.relative_to(DOCS).with_suffix(".html")).is_file()] == []
    assert "crossdock.delivery.export" in (site / "api.html").read_text(encoding="utf-8")
