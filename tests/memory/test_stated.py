"""What `plan` states is held against what the process of the same export took at most; less than that is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_budget import LLAMA, llama, torch_dist, write_sparse
from test_budget import mixtral as mixtral

MIB = 1 << 20
COMMAND = """
import sys
from crossdock.__main__ import run
from crossdock.io.system import resident
try:
    run()
finally:
    print(resident()[1], file=sys.stderr)
"""


def crossdock(*words: object, code: int = 0) -> tuple[str, str, int]:
    """stdout, stderr and the most resident bytes of a command in a process of its own."""
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    *said, peak = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    return done.stdout, "\n".join(said), int(peak)


def deep(folder: Path) -> Path:
    """7,200 tensors of a few rows each: their tables are larger than the buffers."""
    config = LLAMA | {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 800,
                      "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    for layer in range(800):
        at = f"model.layers.{layer}."
        shapes |= {at + f"self_attn.{p}_proj.weight": (32, 32) for p in "qkvo"}
        shapes |= {at + f"mlp.{p}_proj.weight": (32, 32) for p in ("gate", "up", "down")}
        shapes |= {at + f"{p}_layernorm.weight": (32,) for p in ("input", "post_attention")}
    return write_sparse(folder, config, shapes)


def wide(folder: Path) -> Path:
    """A vocabulary of 65,536 tokens with as many merges."""
    source = llama(folder)
    alphabet = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]), *map(chr, range(256, 324))]
    pairs = [(a, b) for a in alphabet for b in alphabet][: 65536 - 256]
    tokens = [*alphabet, *("".join(pair) for pair in pairs)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "vocab": {text: n for n, text in enumerate(tokens)},
        "merges": [f"{a} {b}" for a, b in pairs],
    }
    text = {"added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}
    (source / "tokenizer.json").write_text(json.dumps(text))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "!"}))
    return source


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (llama, ("--to", "gguf", "--dtype", "f16")),
        (llama, ("--to", "gguf", "-q", "q8_0", "--memory", "8MiB")),
        (llama, ("--to", "hf", "-q", "fp8", "--memory", "64MiB")),
        (mixtral, ("--to", "gguf", "--dtype", "f16", "--memory", "16MiB")),
        (torch_dist, ("--to", "hf", "--memory", "16MiB", "--workers", "2")),
        (deep, ("--to", "hf", "--memory", "96MiB")),
        (wide, ("--to", "gguf", "--memory", "128MiB")),
    ],
    ids=["default", "8MiB", "fp8", "mixture", "torch_dist", "many tensors", "large vocabulary"],
)
def test_no_export_takes_more_than_its_plan_states(make: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    stated = json.loads(crossdock("plan", source, *words, "--json")[0])
    dry = json.loads(crossdock("export", source, *words, "--dry-run", "--json")[0])
    _, _, took = crossdock("export", source, *words, "-o", tmp_path / "out", "--no-progress")
    slack = 4 * MIB  # two processes do not take the same to the byte
    assert took <= min(stated["peak"], dry["peak"]) + slack, f"{took / MIB:.0f} MiB, {stated['peak'] / MIB:.0f} stated"
    assert stated["peak"] <= 4 * took
    assert 0 < stated["planning"] < stated["peak"]
    if "--memory" in words:
        allowed = int(words[words.index("--memory") + 1].removesuffix("MiB"))
        assert took <= (allowed + 64) * MIB, f"{took / MIB:.0f} MiB"


@pytest.mark.parametrize("make", [deep, wide], ids=["many tensors", "large vocabulary"])
def test_less_memory_than_planning_took_is_refused_with_both_numbers(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    words = (source, "--to", "gguf", "--memory", "1MiB", "--workers", "1")
    fits = 0
    for command in (("plan", *words), ("export", *words, "-o", tmp_path / "out.gguf")):
        _, said, _ = crossdock(*command, code=2)
        needed = re.search(r"--memory is 1 MiB, and this needs ([\d.]+) MiB", said)
        assert needed, said
        assert float(needed[1]) > 2
        assert "tokenizer and tables of tensors included" in said
        fits = int(re.findall(r"use --memory (\d+)MiB", said)[0])
        shown, _, _ = crossdock(*command, "--json", code=2)
        assert needed[0].split(" MiB, ")[0] in json.loads(shown)["problems"][0]["what"]
    assert not list(tmp_path.glob("out.gguf*"))
    more = f"{fits + 2}MiB"
    run = (source, "--to", "gguf", "--memory", more, "--workers", "1", "-o", tmp_path / "out.gguf", "--no-progress")
    _, _, took = crossdock("export", *run)
    assert took <= (fits + 2 + 64) * MIB
    crossdock("plan", source, "--to", "gguf")  # without --memory, planning takes what it takes
