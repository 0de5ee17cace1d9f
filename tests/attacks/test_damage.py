"""Small real checkpoints, damaged at random: a whole result or a clean error, never a hang or half an output."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import damage, export_both, open_changed_keys, restored, survive, watched

import crossdock
from crossdock.scan import scan

ROUNDS = 30
CUTS = 6
ROOT = Path(__file__).resolve().parents[2]
KINDS = ["torch_dist", "ranks", "hf", "gguf"]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    megatron_checkpoint: Callable[[str], Path],
) -> Path:
    """What is opened: a folder or a file, alone in a folder of its own that may be written to."""
    folder = tmp_path_factory.mktemp("damage") / "source"
    tiny, tokenizer = ROOT / "examples" / "tiny-kjv", ROOT / "examples" / "tiny-kjv-tokenizer"
    if request.param == "torch_dist":
        shutil.copytree(megatron_checkpoint("llama-v019-dist-tp2pp2-bf16"), folder)
    elif request.param == "ranks":
        shutil.copytree(megatron_checkpoint("qwen2-v019-legacy-tp2-fp32"), folder)
    elif request.param == "hf":
        plan = crossdock.plan(crossdock.open(tiny), "hf", tokenizer=tokenizer, max_shard_size=700_000)
        crossdock.run(plan, folder)
    else:
        plan = crossdock.plan(crossdock.open(tiny), "gguf", tokenizer=tokenizer, quantize="q8_0")
        crossdock.run(plan, folder / "model.gguf")
        (folder / "model.gguf.manifest.json").unlink()
        return folder / "model.gguf"
    return folder


def folder_of(checkpoint: Path) -> Path:
    return checkpoint.parent if checkpoint.is_file() else checkpoint


def test_random_damage(checkpoint: Path, tmp_path: Path) -> None:
    rng, made = random.Random(11), 0
    for _ in range(ROUNDS):
        with restored(folder_of(checkpoint)):
            damage(folder_of(checkpoint), rng)
            with watched():
                made += export_both(lambda: crossdock.open(checkpoint), tmp_path)
                survive(lambda: scan(checkpoint))
    assert 0 < made < 2 * ROUNDS
    assert export_both(lambda: crossdock.open(checkpoint), tmp_path) == 2


def test_configurations_that_lie(checkpoint: Path, tmp_path: Path) -> None:
    rng = random.Random(12)
    for _ in range(ROUNDS):
        with watched():
            export_both(open_changed_keys(checkpoint, rng), tmp_path)


def test_every_file_of_weights_cut_off(checkpoint: Path, tmp_path: Path) -> None:
    rng = random.Random(13)
    files = [f for f in folder_of(checkpoint).rglob("*") if f.suffix in (".distcp", ".pt", ".safetensors", ".gguf")]
    assert files
    for file in files:
        whole = file.read_bytes()
        ends = [0, 1, len(whole) - 1, *(rng.randrange(2, len(whole) - 1) for _ in range(CUTS))]
        with restored(folder_of(checkpoint)):
            for end in ends:
                file.write_bytes(whole[:end])
                with watched():
                    assert export_both(lambda: crossdock.open(checkpoint), tmp_path) == 0, f"{file.name} cut at {end}"


def test_a_damaged_output_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """Damage to an output is a clean error of `verify`, or a report that is not ok, or changes nothing."""
    rng = random.Random(14)
    output = tmp_path / "out" / "model"
    crossdock.run(crossdock.plan(crossdock.open(checkpoint), "hf"), output)
    source = crossdock.open(checkpoint)
    reports: list[bool] = []

    def verify() -> None:
        reports.append(crossdock.verify(output, source, memory=8 << 20, workers=1).ok)

    failed = 0
    for _ in range(ROUNDS // 2):
        with restored(output):
            damage(output, rng)
            with watched():
                failed += not survive(verify)
    assert failed + reports.count(False) > ROUNDS // 6


def test_layers_and_experts_without_end(megatron_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A configuration that claims 10**13 experts is refused for what the file lacks, not spelled out name by name."""
    source = tmp_path / "moe"
    crossdock.run(crossdock.plan(crossdock.open(megatron_checkpoint("mixtral-v019-dist-tp2ep2pp2-bf16")), "hf"), source)
    config = json.loads((source / "config.json").read_text())
    config |= {"num_local_experts": 10**9, "num_hidden_layers": 20_000}
    (source / "config.json").write_text(json.dumps(config))
    with watched():
        assert not survive(lambda: crossdock.open(source))
