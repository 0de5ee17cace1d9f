"""`verify` says what it held against what, what it did not, and what the user's own word makes impossible to prove."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import crossdock
from crossdock.cli import main
from crossdock.errors import ConfigError, UsageError
from oracles.rewriting import Folder, rewrite_gguf, rewrite_hf
from support import hf_models

ROOT = Path(__file__).parents[2]
KJV = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
TOKENS, LOGITS = KJV / "tokens.npy", KJV / "logits.npy"


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*map(str, args), "--no-progress"])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the example in float32: k.gguf and hf with its tokenizer, mute.gguf and mute without one."""
    folder = tmp_path_factory.mktemp("outputs")
    for name, to, tokenizer in (("k.gguf", "gguf", TOKENIZER), ("hf", "hf", TOKENIZER), ("mute.gguf", "gguf", None),
                                ("mute", "hf", None)):  # fmt: skip
        crossdock.export(KJV, folder / name, to, dtype="f32", **({"tokenizer": tokenizer} if tokenizer else {}))
    return folder


ABSENT = "neither side has one"
CHECKED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gguf whose tokenizer the manifest tells": ("k.gguf", {}, {"tokenizer": "sha256 of its keys in the manifest",
                                                               "token_ids": False, "logits": False}),
    "gguf with its tokenizer": ("k.gguf", {"tokenizer": TOKENIZER}, {"tokenizer": "vocabulary", "token_ids": False}),
    "gguf's token ids": ("k.gguf", {"tokenizer": TOKENIZER, "tokens": True}, {"token_ids": "llama.cpp"}),
    "gguf that has no tokenizer": ("mute.gguf", {}, {"tokenizer": ABSENT, "token_ids": ABSENT}),
    "folder whose tokenizer the manifest tells": ("hf", {}, {"tokenizer": "sha256 in the manifest",
                                                             "token_ids": "the same files"}),
    "folder with its tokenizer": ("hf", {"tokenizer": TOKENIZER},
                                  {"tokenizer": "bytes", "token_ids": "the same files"}),
    "folder that has no tokenizer": ("mute", {"logits": [1, 2, 3]},
                                     {"tokenizer": ABSENT, "logits": "output by the reference forward, source by the "
                                      "reference forward"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKED)
def test_what_was_compared(case: str, outputs: Path) -> None:
    name, options, expected = CHECKED[case]
    found = crossdock.verify(outputs / name, KJV, **options)
    assert found.ok
    checked = {part: getattr(found.checked, part) for part in expected}
    assert checked == expected
    assert (found.checked.tensors, found.checked.configuration) == ("bytes", "keys")
    assert set(found.unchecked) >= {part for part, how in expected.items() if how is False}


def test_a_broken_tokenizer_that_nothing_was_held_against_is_named(outputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    crossdock.export(KJV, out, "hf", dtype="f32")
    (out / "tokenizer.json").write_text("{}")
    text = run("verify", out, "--against", KJV).stdout
    assert "tokenizer      NOT compared: give --tokenizer" in text
    assert text.rstrip().endswith("not compared: tokenizer, token ids, logits")
    assert "NOT PROVEN" in run("verify", out, "--against", KJV, "--strict", code=1).stdout
    document = json.loads(run("verify", out, "--against", KJV, "--json").stdout)
    assert document["ok"] is True
    assert document["checked"]["tokenizer"] is False
    assert document["unchecked"] == ["tokenizer", "token_ids", "logits"]
    run("verify", out, "--against", KJV, "--tokenizer", TOKENIZER, code=1)


def test_the_manifest_s_tokenizer_is_what_a_folder_is_held_against(tmp_path: Path) -> None:
    """A tokenizer that was exchanged after the export is found without --tokenizer; without a manifest it is named."""
    out = tmp_path / "hf"
    crossdock.export(KJV, out, "hf", dtype="f32", tokenizer=TOKENIZER)
    (out / "tokenizer.json").write_text((out / "tokenizer.json").read_text().replace("ing", "gni"))
    found = crossdock.verify(out, KJV)
    assert not found.ok
    assert [Path(problem.where).name for problem in found.problems] == ["tokenizer.json"]
    (tmp_path / "hf.manifest.json").unlink()
    assert crossdock.verify(out, KJV).checked.tokenizer is False


TOKENIZER_KEYS: dict[str, Callable[[Any], Any]] = {
    "a token": lambda m: m.keys["tokenizer.ggml.tokens"][2].__setitem__(300, "gni"),
    "a merge": lambda m: m.keys["tokenizer.ggml.merges"][2].reverse(),
    "the end of text": lambda m: m.keys["tokenizer.ggml.eos_token_id"].__setitem__(2, 7),
    "a key that is new": lambda m: m.keys.update({"tokenizer.chat_template": [8, None, "{{ 1 }}"]}),
}


@pytest.mark.parametrize("case", TOKENIZER_KEYS)
def test_the_manifest_s_tokenizer_is_what_a_gguf_is_held_against(case: str, outputs: Path, tmp_path: Path) -> None:
    """As for folders: every key of the vocabulary, without --tokenizer; without a manifest it is named."""
    out = tmp_path / "k.gguf"
    rewrite_gguf(outputs / "k.gguf", out, TOKENIZER_KEYS[case])
    assert crossdock.verify(out, KJV).checked.tokenizer is False
    (tmp_path / "k.gguf.manifest.json").write_bytes((outputs / "k.gguf.manifest.json").read_bytes())
    found = crossdock.verify(out, KJV)
    assert not found.ok
    assert [problem.what for problem in found.problems] == ["the tokenizer's keys are not those that were exported"]


def test_strict_passes_where_everything_was_compared(outputs: Path) -> None:
    words = ("verify", outputs / "k.gguf", "--against", KJV, "--tokenizer", TOKENIZER, "--strict",
             "--logits", TOKENS, "--reference", LOGITS)  # fmt: skip
    assert "not compared: token ids" in run(*words, code=1).stdout
    assert "not compared" not in run(*words, "--tokens").stdout


def test_text_files_of_a_folder_are_compared(outputs: Path, tmp_path: Path) -> None:
    """A chat template that was made from a GGUF is not JSON; its bytes count."""
    source, out = tmp_path / "m.gguf", tmp_path / "hf"
    rewrite_gguf(
        outputs / "k.gguf", source, lambda m: m.keys.update({"tokenizer.chat_template.t": [8, None, "{{ 1 }}"]})
    )
    crossdock.export(source, out, "hf")
    assert crossdock.verify(out, source).ok
    template = out / "additional_chat_templates" / "t.jinja"
    template.write_text(template.read_text().replace("1", "2"))
    assert [Path(p.where).name for p in crossdock.verify(out, source).problems] == [template.name]


# what the training program computed


@pytest.mark.parametrize("engine", [None, "llama.cpp"])
@pytest.mark.parametrize("options", [{"dtype": "f32"}, {"quantize": "q4_0"}, {"quantize": "q8_0"}])
def test_megatron_s_own_logits_prove_an_output_without_its_source(
    options: dict[str, str], engine: str | None, tmp_path: Path
) -> None:
    out = tmp_path / "k.gguf"
    crossdock.export(KJV, out, "gguf", **options)
    words = [] if engine is None else ["--logits-engine", engine]
    assert "source by logits.npy" in run("verify", out, "--logits", TOKENS, "--reference", LOGITS, *words).stdout
    broken = tmp_path / "broken.gguf"
    rewrite_gguf(out, broken, lambda m: m.swap("blk.1.attn_k.weight", "blk.2.attn_k.weight"))
    run("verify", broken, "--logits", TOKENS, "--reference", LOGITS, *words, code=1)


def _padded(logits: Any) -> Any:
    return np.pad(logits, ((0, 0), (0, 0), (0, 24)))


def _bfloat16(logits: Any) -> Any:
    return ((logits.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


REFERENCES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "as Megatron pads the vocabulary": (_padded, 0),
    "computed in bfloat16": (_bfloat16, 0),
    "in float64": (lambda a: a.astype(np.float64), 0),
    "a wrong value": (lambda a: a + 0.1 * (np.arange(a.size).reshape(a.shape) == 77), 1),
    "not a number": (lambda a: a * np.nan, 1),
    "of one window": (lambda a: a[0], 2),
    "of fewer tokens": (lambda a: a[:, :5], 2),
    "of a smaller vocabulary": (lambda a: a[:, :, :999], 2),
    "not of floats": (lambda a: a.astype(np.int32), 2),
    "of one dimension": (lambda a: a.reshape(-1), 2),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_files_of_logits(case: str, outputs: Path, tmp_path: Path) -> None:
    change, code = REFERENCES[case]
    np.save(tmp_path / "logits.npy", change(np.load(LOGITS)))
    run("verify", outputs / "k.gguf", "--logits", TOKENS, "--reference", tmp_path / "logits.npy", code=code)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to hold it against": ({}, "requires a source or a reference"),
    "an engine without a source": ({"logits": [1], "reference": "transformers"}, "requires a source or a reference"),
    "a reference without tokens": ({"reference": LOGITS}, "which text or tokens"),
    "token ids without a source": ({"logits": TOKENS, "reference": LOGITS, "tokens": True}, "need the source"),
    "no such reference": ({"against": KJV, "logits": [1], "reference": "megatron"}, "unknown reference 'megatron'"),
    "a source that the engine does not read": ({"against": KJV, "logits": [1], "reference": "transformers"},
                                               "transformers does not read this source"),
    "does not exist": ({"logits": TOKENS, "reference": "none.npy"}, "no logits can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, outputs: Path) -> None:
    options, said = MISTAKES[case]
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    with pytest.raises(UsageError, match=said):
        crossdock.verify(outputs / "k.gguf", options.pop("against", None), **options)


# what the user said against the model's own configuration


def _smollm3(folder: Path) -> Path:
    """A llama whose config.json has a key of another architecture."""
    source = hf_models.make_hf("llama", folder / "hf", dtype="float32")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"no_rope_layers": [1, 0]}))
    return source


def test_a_hint_does_not_advise_to_silence_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        crossdock.open(_smollm3(tmp_path))
    assert "--set" not in str(error.value)
    assert "probably another architecture" in str(error.value)


def test_a_silenced_key_is_not_proven_in_export_manifest_and_verify(tmp_path: Path) -> None:
    source, out = _smollm3(tmp_path), tmp_path / "m.gguf"
    said = "no_rope_layers = [1, 0] in"
    text = run("export", source, "--to", "gguf", "--set", "no_rope_layers=None", "-o", out).stdout
    assert f"not proven: {said}" in text
    manifest = json.loads((tmp_path / "m.gguf.manifest.json").read_text())
    assert [sentence.startswith(said) for sentence in manifest["unproven"]] == [True]
    words = ("verify", out, "--against", source, "--set", "no_rope_layers=None", "--logits", "1,2,3,4,5")
    assert said in run(*words).stdout
    run(*words, "--strict", code=1)
    assert json.loads(run(*words, "--json").stdout)["unproven"][0].startswith(said)


def test_transformers_tells_a_falsified_configuration(tmp_path: Path) -> None:
    """Source and output agree under the same wrong --set; transformers, which reads the source itself, does not."""
    source, out = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32"), tmp_path / "m.gguf"
    crossdock.export(source, out, "gguf")
    right = crossdock.verify(out, source, logits=[1, 2, 3, 4, 5, 6, 7], reference="transformers")
    assert right.ok
    assert right.logits is not None
    assert right.logits.reference == "transformers"
    wrong = {"rope_theta": "300"}
    crossdock.export(source, out, "gguf", set=wrong, force=True)
    falsified = crossdock.open(source, set=wrong)
    blind = crossdock.verify(out, falsified, logits=[1, 2, 3, 4, 5, 6, 7])
    assert blind.ok
    assert blind.unproven
    assert not crossdock.verify(out, falsified, logits=[1, 2, 3, 4, 5, 6, 7], reference="transformers").ok


def test_what_an_independent_reference_proves_is_no_longer_unproven(tmp_path: Path) -> None:
    source, out = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32"), tmp_path / "m.gguf"

    def doubled(folder: Folder) -> None:
        folder.config["rms_norm_eps"] = 2 * folder.config["rms_norm_eps"]

    wrong = tmp_path / "wrong"
    rewrite_hf(source, wrong, doubled)
    (right,) = {json.loads((source / "config.json").read_text())["rms_norm_eps"]}
    crossdock.export(wrong, out, "gguf", set={"rms_norm_eps": str(right)})
    checkpoint = crossdock.open(wrong, set={"rms_norm_eps": str(right)})
    reference = tmp_path / "logits.npy"
    from oracles.transformers_engine import transformers_logits

    ids = np.array([[1, 2, 3, 4, 5]])
    np.save(reference, transformers_logits(source, ids))
    assert crossdock.verify(out, checkpoint, logits=[1, 2, 3, 4, 5]).unproven
    assert not crossdock.verify(out, checkpoint, logits=[1, 2, 3, 4, 5], reference=reference).unproven


OVERRIDES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "nothing": ({}, ()),
    "a field of the same value": ({"set": {"norm_eps": "1e-5"}}, ()),
    "the family that it is of": ({"family": "llama"}, ()),
    "a field": ({"set": {"rope_theta": "5000"}}, ("rope_theta = 5000.0 is from --set; the checkpoint has 10000.0",)),
    "a key of the format": ({"set": {"rotary_base": "5000"}}, ("rotary_base = 10000 in",)),
    "another family": ({"family": "mistral"}, ("the family mistral is from --family; the configuration in",)),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_what_contradicts_the_checkpoint(case: str) -> None:
    options, begins = OVERRIDES[case]
    found = crossdock.open(KJV, **options).described.unproven
    assert len(found) == len(begins)
    assert all(sentence.startswith(begin) for sentence, begin in zip(found, begins, strict=True))


def test_a_config_file_that_contradicts_is_not_proven_and_an_equal_one_says_nothing(tmp_path: Path) -> None:
    source = hf_models.make_hf("llama", tmp_path / "hf", dtype="float32")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(config))
    (tmp_path / "other.json").write_text(json.dumps(config | {"rms_norm_eps": 0.001}))
    assert crossdock.open(source, config=tmp_path / "same.json").described.unproven == ()
    (said,) = crossdock.open(source, config=tmp_path / "other.json").described.unproven
    assert said.startswith("norm_eps = 0.001 is from ")


def test_a_plan_says_first_what_is_not_proven() -> None:
    plan = crossdock.plan(crossdock.open(KJV, set={"rope_theta": "5000"}), "gguf")
    assert plan.warnings[0] == "not proven: rope_theta = 5000.0 is from --set; the checkpoint has 10000.0"
