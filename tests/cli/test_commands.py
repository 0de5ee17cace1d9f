"""The commands from end to end on the example checkpoint: what is printed, written and returned."""

import json
import shlex
import shutil
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossdock.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
CHECKPOINT = EXAMPLES / "tiny-kjv"
TOKENIZER = EXAMPLES / "tiny-kjv-tokenizer"
PARAMETERS = 4 * (2 * 128 + 256 * 128 + 128 * 128 + 3 * 384 * 128) + 128 + 2 * 1000 * 128


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "kjv.gguf"
    run("export", CHECKPOINT, "--to", "gguf", "-q", "q8_0", "--tokenizer", TOKENIZER, "-o", out)
    return out


def test_inspect() -> None:
    text = run("inspect", CHECKPOINT).stdout
    assert f"{PARAMETERS:,}" in text
    assert ["rope_theta", "10000", "rotary_base"] in [line.split() for line in text.splitlines()]
    assert "linear_fc1" in text
    assert "4 × 768 × 128" in text
    assert "rng_state" in text


def test_inspect_json_weighs_what_the_plan_writes() -> None:
    found = json.loads(run("inspect", CHECKPOINT, "--json").stdout)
    assert found["parameters"] == PARAMETERS
    assert found["config"]["vocab_size"] == {"value": 1000, "origin": found["config"]["vocab_size"]["origin"]}
    assert found["config"]["vocab_size"]["origin"] not in ("", "default")
    assert found["dtypes"]["bfloat16"]["tensors"] == len(found["tensors"])
    for target in found["targets"]:
        kind = {"hf": ["--dtype", target["dtype"]]}.get(target["to"], [])
        if target["to"] == "gguf":
            kind = ["-q" if target["dtype"].startswith("q") else "--dtype", target["dtype"]]
        plan = json.loads(run("plan", CHECKPOINT, "--to", target["to"], *kind, "--json").stdout)
        assert sum(tensor["nbytes"] for tensor in plan["tensors"]) == target["nbytes"], target


def test_inspect_every_tensor() -> None:
    found = json.loads(run("inspect", CHECKPOINT, "--json").stdout)
    lines = run("inspect", CHECKPOINT, "--tensors").stdout.splitlines()
    for tensor in found["tensors"]:
        shape = " × ".join(map(str, tensor["shape"]))
        assert any(line.split() == [tensor["name"], *shape.split(), tensor["dtype"]] for line in lines)


def test_inspect_shows_what_is_stored_when_the_configuration_is_no_use() -> None:
    result = run("inspect", CHECKPOINT, "--set", "num_key_value_heads=3", code=3)
    assert "4 × 768 × 128" in result.stdout
    assert "rotary_base" in result.stdout
    assert result.stderr.startswith("error: ")
    assert "num_key_value_heads" in result.stderr
    found = json.loads(run("inspect", CHECKPOINT, "--set", "num_key_value_heads=3", "--json", code=3).stdout)
    assert found["error"] == "ConfigError"
    assert "num_key_value_heads" in json.dumps(found["problems"])
    assert len(found["tensors"]) == 9


def test_inspect_gguf_and_hf(exported: Path, tmp_path: Path) -> None:
    text = run("inspect", exported).stdout
    assert ["attn_q.weight", "4", "128", "×", "128", "q8_0", "65.5", "K"] in [
        line.split() for line in text.splitlines()
    ]
    assert "  blk.{0-3}\n" in text
    assert "Metadata of " in text
    assert "attention_head_count_kv" in text
    run("export", CHECKPOINT, "--to", "hf", "-o", tmp_path / "hf", "--tokenizer", TOKENIZER)
    assert f"{PARAMETERS:,}" in run("inspect", tmp_path / "hf").stdout
    assert "num_key_value_heads" in run("inspect", tmp_path / "hf").stdout


def test_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = run("plan", CHECKPOINT, "--to", "gguf", "-q", "q8_0").stdout
    assert "megatron → gguf" in text
    assert "q8_0" in text
    assert list(tmp_path.iterdir()) == []


def test_dry_run_is_plan(tmp_path: Path) -> None:
    asked = (CHECKPOINT, "--to", "hf", "--dtype", "f32")
    assert _planned(run("export", *asked, "--dry-run").stdout) == _planned(run("plan", *asked).stdout)
    dry = json.loads(run("export", *asked, "--dry-run", "--json", "-o", tmp_path / "x").stdout)
    plan = json.loads(run("plan", *asked, "--json").stdout)
    assert {key for key in plan if dry[key] != plan[key]} <= {"planning", "peak"}  # measured
    assert dry.keys() == plan.keys()
    assert list(tmp_path.iterdir()) == []


def _planned(text: str) -> list[str]:
    """The lines but that of memory, of which planning is measured: the second time in a process it takes less."""
    lines = text.splitlines()
    assert sum("for planning, then" in line for line in lines) == 1
    return [line for line in lines if "for planning, then" not in line]


def test_plan_json_and_saved_lines(tmp_path: Path) -> None:
    file = tmp_path / "plan.jsonl"
    plan = json.loads(run("plan", CHECKPOINT, "--to", "gguf", "--save", file, "--json").stdout)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["crossdock_plan"] == 1
    saved = {line["tensor"]: line["dtype"] for line in lines if "moves" in line}
    assert saved == {tensor["name"]: tensor["dtype"] for tensor in plan["tensors"]}
    assert [path.name for path in tmp_path.iterdir()] == ["plan.jsonl"]
    assert set(plan["config"]["rope_theta"]) == {"value", "origin"}


def test_plan_that_cannot_be_saved(tmp_path: Path) -> None:
    result = run("plan", CHECKPOINT, "--to", "gguf", "--save", tmp_path / "no" / "plan.jsonl", code=4)
    assert "No such file or directory" in result.stderr
    assert result.stdout == ""


def test_export_says_what_it_did(tmp_path: Path) -> None:
    out = tmp_path / "with space.gguf"
    result = run("export", CHECKPOINT, "--to", "gguf", "--dtype", "f16", "-o", out, "--no-progress")
    assert "→" in result.stderr
    assert f"written  {out}" in result.stdout
    assert f"manifest  {out}.manifest.json" in result.stdout
    assert f"next: crossdock verify '{out}' --against {CHECKPOINT}" in result.stdout
    assert out.read_bytes()[:4] == b"GGUF"


def test_the_suggested_command_verifies(tmp_path: Path) -> None:
    source = ("--iteration", "1600", "--family", "llama", "--set", "rope_theta=5000.0")
    out = tmp_path / "x.gguf"
    text = run("export", CHECKPOINT, "--to", "gguf", *source, "--tokenizer", TOKENIZER, "-o", out).stdout
    command = shlex.split(text.split("next: ")[1].splitlines()[0])
    assert command[0] == "crossdock"
    assert "verified" in run(*command[1:]).stdout
    run("verify", out, "--against", CHECKPOINT, "--tokenizer", TOKENIZER, code=1)  # rope_theta differs


def test_export_json(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    result = run("export", CHECKPOINT, "--to", "gguf", "-o", out, "--json", "--hash", "sha256")
    report = json.loads(result.stdout)
    assert Path(report["manifest"]).exists()
    assert report["nbytes"] == out.stat().st_size
    assert all(len(tensor["hash"]) == 64 for tensor in report["tensors"])
    assert {tensor["census"]["nan"] for tensor in report["tensors"]} == {0}


def test_an_output_is_not_touched_without_force(exported: Path) -> None:
    before = exported.stat().st_mtime_ns
    result = run("export", CHECKPOINT, "--to", "gguf", "-o", exported, code=2)
    assert "--force" in result.stderr
    assert exported.stat().st_mtime_ns == before


def test_findings_are_shown(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    run("export", CHECKPOINT, "--to", "hf", "--tokenizer", TOKENIZER, "-o", source)
    (file,) = source.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    norm, down = header["model.norm.weight"], header["model.layers.2.mlp.down_proj.weight"]
    start, end = (8 + length + offset for offset in norm["data_offsets"])
    data[start:end] = bytes(end - start)
    start = 8 + length + down["data_offsets"][0]
    data[start : start + 4] = b"\xc0\x7f\x80\x7f"  # NaN and Inf as bfloat16
    data[start + 4 : start + 6] = b"\x80\x4f"  # 2**32
    file.write_bytes(data)
    asked = ("export", source, "--to", "gguf", "--dtype", "f16")
    text = run(*asked, "-o", tmp_path / "x.gguf").stdout
    assert "Values to look at, in 2 tensors" in text
    assert "blk.2.ffn_down.weight  1 NaN, 1 Inf, 1 too large for float16" in text
    assert "all zero" in text
    run(*asked, "-o", tmp_path / "y.gguf", "--fail-on", "nonfinite", code=1)
    run(*asked, "-o", tmp_path / "z.gguf", "--fail-on", "overflow", "--fail-on", "nonfinite", code=1)


def test_verify(exported: Path) -> None:
    text = run("verify", exported, "--against", CHECKPOINT, "--tokenizer", TOKENIZER).stdout
    assert "verified" in text
    assert "Distance from the source's values" in text
    report = json.loads(run("verify", exported, "--against", CHECKPOINT, "--tokenizer", TOKENIZER, "--json").stdout)
    assert report["ok"] is True
    assert {tensor["status"] for tensor in report["tensors"]} == {"equal"}


def test_verify_finds_one_byte(exported: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    shutil.copy(exported, damaged)
    with damaged.open("r+b") as file:
        file.seek(-5, 2)
        (byte,) = file.read(1)
        file.seek(-5, 2)
        file.write(bytes([byte ^ 1]))
    args = ("verify", damaged, "--against", CHECKPOINT, "--tokenizer", TOKENIZER)
    text = run(*args, code=1).stdout
    assert "NOT EQUAL" in text
    assert "Not equal\n" in text
    report = json.loads(run(*args, "--json", code=1).stdout)
    assert report["ok"] is False
    assert [one["status"] for one in report["tensors"]].count("different") == 1


def test_scan(tmp_path: Path) -> None:
    assert run("scan", CHECKPOINT).stdout.startswith("clean: only data in ")
    assert run("scan", tmp_path).stdout.startswith("no files that can contain a pickle in ")
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    text = run("scan", tmp_path, code=1).stdout
    assert "call     a loader would call os.system('x')" in text
    assert "in 1 of 1 file" in text
    found = json.loads(run("scan", tmp_path, "--json", code=1).stdout)
    assert found["files"] == 1
    assert {"call", "import"} == {finding["severity"] for finding in found["findings"]}


def test_plan_refuses_too_little_memory() -> None:
    result = run("plan", CHECKPOINT, "--to", "gguf", "--memory", "64KiB", "--workers", 2, code=2)
    assert "--memory" in result.stderr
    assert result.stdout == ""
