"""The scan says nothing about real checkpoints, and everything about hostile ones; nothing is ever run."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pickle_corpus import call
from safetensors.torch import save_file

from crossdock.errors import NotACheckpointError
from crossdock.formats.dcp.metadata import read_metadata
from crossdock.scan import Finding, scan

ROOT = Path(__file__).parents[2]
REAL = sorted(file.name.removesuffix(".tar.xz") for file in (ROOT / "tests/data/checkpoints").glob("*.tar.xz"))


@pytest.mark.parametrize("name", [*REAL, "tiny-kjv"])
def test_real_checkpoints_are_clean(name: str, megatron_checkpoint: Callable[[str], Path]) -> None:
    folder = megatron_checkpoint(name)
    assert list(folder.rglob("*.distcp")) or list(folder.rglob("*.pt"))
    assert scan(folder).clean


def test_a_hostile_activation_file(tmp_path: Path) -> None:
    file = tmp_path / "activation_0.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("activation_0/data.pkl", call("posix", "system", "echo pwned > pwned.txt"))
    found = scan(tmp_path).findings
    assert found[-1] == Finding(
        file,
        "activation_0/data.pkl",
        44,
        "posix.system",
        "call",
        "a loader would call posix.system('echo pwned > pwned.txt')",
    )
    assert [finding.severity for finding in found] == ["import", "call"]
    assert not (tmp_path / "pwned.txt").exists()


class Calls:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_a_call_beside_tensors(modern: bool, tmp_path: Path) -> None:
    saved = {"a": torch.ones(3), "b": [Calls()], "c": torch.zeros(2)}
    torch.save(saved, tmp_path / "model.pt", _use_new_zipfile_serialization=modern)
    found = scan(tmp_path / "model.pt").findings
    assert [(finding.severity, finding.name) for finding in found] == [
        ("import", "posix.system"),
        ("call", "posix.system"),
    ]


def test_a_call_in_metadata_and_in_a_blob(megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = megatron_checkpoint("gpt2-v019-dist-tp2-fp32") / "iter_0000010"
    folder = tmp_path / "iter"
    shutil.copytree(source, folder)
    # a blob whose pickle calls something of the same length
    file = folder / "__0_0.distcp"
    data = file.read_bytes()
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    evil = b"ctorch._utils\n_rebuild_tensor_vX\n"
    at = data.index(name)
    file.write_bytes(data[:at] + evil + data[at + len(name) :])
    found = scan(folder).findings
    assert {finding.name for finding in found} == {"torch._utils._rebuild_tensor_vX"}
    assert found[0].place.startswith("blob at ")
    # without .metadata the same is found by searching the file
    (folder / ".metadata").unlink()
    assert {finding.name for finding in scan(folder).findings} == {"torch._utils._rebuild_tensor_vX"}
    shutil.copy(source / ".metadata", folder)
    (folder / ".metadata").write_bytes((source / ".metadata").read_bytes().replace(b"_get_layout", b"_get_shells"))
    assert "torch.serialization._get_shells" in {finding.name for finding in scan(folder).findings}


@pytest.mark.parametrize("wanted", ["object", "tensor"])
def test_a_bare_pickle_in_place_of_a_blob(
    wanted: str, megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """torch.load runs what is no zip archive as a file of before torch 1.6."""
    folder = tmp_path / "iter"
    shutil.copytree(megatron_checkpoint("gpt2-v019-dist-tp2-fp32") / "iter_0000010", folder)
    described = read_metadata(folder)
    tensor = next(iter(described.tensors.values())).chunks[0]
    place = next(iter(described.objects.values())) if wanted == "object" else tensor
    with (folder / place.path).open("r+b") as file:
        file.seek(place.offset)
        file.write(call("posix", "system", "touch pwned").ljust(place.length, b"\0"))
    found = scan(folder).findings
    assert [(finding.severity, finding.name) for finding in found] == [
        ("import", "posix.system"),
        ("call", "posix.system"),
    ]
    assert found[0].place == f"blob at {place.offset}"


def test_an_archive_that_no_metadata_names(megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "iter"
    shutil.copytree(megatron_checkpoint("gpt2-v019-dist-tp2-fp32") / "iter_0000010", folder)
    with zipfile.ZipFile(tmp_path / "more", "w") as archive:
        archive.writestr("archive/data.pkl", call("posix", "system", "touch pwned"))
    with (folder / "__0_0.distcp").open("ab") as file:
        file.write((tmp_path / "more").read_bytes())
    assert {finding.name for finding in scan(folder).findings} == {"posix.system"}


def test_links_to_folders_inside_are_followed_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "kept").mkdir(parents=True)
    (run / "kept/common.pt").write_bytes(call("posix", "system", "touch pwned"))
    (run / "iter_0000001").symlink_to("kept")
    (run / "kept/up").symlink_to("..")
    assert [finding.severity for finding in scan(run).findings] == ["import", "call"]
    assert scan(run).files == 1


def test_links_that_lead_out_are_named_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/common.pt").write_bytes(call("posix", "system", "touch pwned"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/iter_0000001").symlink_to("../elsewhere")
    (tmp_path / "run/model.pt").symlink_to("../elsewhere/common.pt")
    report = scan(tmp_path / "run")
    assert {finding.file.name for finding in report.findings} == {"iter_0000001", "model.pt"}
    assert report.exit_code == 3


def test_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    model = tmp_path / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots/123/sub").mkdir(parents=True)
    (model / "blobs/abc").write_bytes(call("posix", "system", "touch pwned"))
    (model / "snapshots/123/sub/model.bin").symlink_to("../../../blobs/abc")
    assert scan(model / "snapshots/123").exit_code == 1


def test_what_is_no_regular_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "common.pt")
    (tmp_path / "model.bin").symlink_to("/dev/zero")
    (tmp_path / "device").symlink_to("/dev/zero")
    sentences = [finding.sentence for finding in scan(tmp_path).findings]
    assert sentences[0] == "this is not a regular file"
    assert all("out of the folder" in sentence for sentence in sentences[1:])
    assert len(sentences) == 3


def test_names_of_entries_in_capitals(tmp_path: Path) -> None:
    """torch's zip reader finds data.pkl whatever the case."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/DATA.PKL", call("posix", "system", "touch pwned"))
        archive.writestr("archive/version", "3\n")
    assert "posix.system" in {finding.name for finding in scan(tmp_path).findings}


def test_a_tar_archive(tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(call("posix", "system", "touch pwned"))
    with tarfile.open(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    (tmp_path / "pickle").unlink()
    assert [finding.severity for finding in scan(tmp_path).findings] == ["import", "call"]


def test_the_scan_goes_on_after_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00a\x85Rcshutil\nrmtree\nX\x01\x00\x00\x00b\x85Rt."
    )
    (tmp_path / "b.pkl").write_bytes(b"\x80\x02]q")
    (tmp_path / "c.bin").write_bytes(bytes(range(256)))
    (tmp_path / "d.bin").write_bytes(b"cos\nsystem\n(S'ls'\ntR.")
    (tmp_path / "e.pkl").write_bytes(pickle.dumps({"plain": [1, 2]}, 4))
    (tmp_path / "f.txt").write_bytes(b"cos\nsystem\n(S'ls'\ntR.")
    found = {(finding.file.name, finding.severity, finding.name) for finding in scan(tmp_path).findings}
    assert found == {
        ("a.pkl", "import", "os.system"),
        ("a.pkl", "call", "os.system"),
        ("a.pkl", "import", "shutil.rmtree"),
        ("a.pkl", "call", "shutil.rmtree"),
        ("b.pkl", "broken", ""),
        ("d.bin", "import", "os.system"),
        ("d.bin", "call", "os.system"),
        ("f.txt", "import", "os.system"),
        ("f.txt", "call", "os.system"),
    }


def test_pickles_of_other_names_and_data_under_the_names_of_pickles(tmp_path: Path) -> None:
    """What a file holds counts: a loader goes by that too. A name that promises no pickle is no finding by itself."""
    torch.save({"a": [Calls()]}, tmp_path / "model.safetensors")
    torch.save({"a": [Calls()]}, tmp_path / "weights", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(3)}, tmp_path / "fine.dat")
    (tmp_path / "cut.dat").write_bytes(b"\x80\x02]q")
    (tmp_path / "README.md").write_text("# cos\nsystem\n(S'ls'\ntR.")
    with zipfile.ZipFile(tmp_path / "texts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "text")
    for number in range(40):  # lengths of the header with every low byte that occurs, 0x80 among them
        name = "w" * (8 * number + 1)
        save_file({name: torch.ones(2)}, tmp_path / f"{number}.bin")
        save_file({name: torch.ones(2)}, tmp_path / f"{number}.pt")
    assert {(tmp_path / f"{number}.bin").read_bytes()[0] for number in range(40)} >= {0x80, 0x58}
    found = scan(tmp_path).findings
    assert {(finding.file.name, finding.severity) for finding in found} == {
        (name, severity) for name in ("model.safetensors", "weights") for severity in ("import", "call")
    }
    assert scan(tmp_path).files == 80 + 4


def test_a_second_pickle_after_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02N." + call("os", "system"))
    assert "os.system" in {finding.name for finding in scan(tmp_path).findings}


def test_many_calls_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + b"cos\nsystem\n)R0" * 5000 + b"N.")
    found = scan(tmp_path).findings
    assert len(found) < 200
    assert "and 4901 more" in found[-1].sentence


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError):
        scan(tmp_path / "none")
    assert scan(tmp_path).files == 0
