"""Every recorded case of a family against the real programs: the tensors and keys of llama.cpp's own converter, logits
of transformers and llama.cpp, and the ways back.

A case whose family crossdock has not yet stands in `NOT_YET`, and is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import family_checks as checks
import gguf
import numpy as np
import pytest
from family_cases import Case, case, names, write_folder
from family_checks import Subject
from made_weights import Stored, values

from crossdock import delivery
from crossdock.errors import InputError
from oracles.files import read_gguf
from oracles.transformers_engine import transformers_logits

NOT_YET = frozenset((Path(__file__).parent / "not_yet.txt").read_text().split())
SUPPORTED = tuple(name for name in names() if name not in NOT_YET)
CONVERTED = tuple(name for name in SUPPORTED if case(name).gguf is not None)
PACKED = tuple(name for name in CONVERTED if any(tensor.dtype in ("U8", "I8") for tensor in case(name).tensors))
# engines run once a model type
ONCE = tuple({case(name).model_type: name for name in reversed(CONVERTED)}.values())
# cases with rows of whole blocks, one for each kind of layer
WIDE = tuple(name for name in SUPPORTED if name.endswith("-wide"))
BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
FLAGS: dict[str, dict[str, str]] = {"f16": {"dtype": "float16"}, "bf16": {"dtype": "bfloat16"}}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def subject(work: Path) -> Callable[[str], Subject]:
    """Name of a case -> the model and its references; the folder is made once."""

    @functools.cache
    def made(name: str) -> Subject:
        return of_case(case(name), case(name).write(work / name))

    return made


@pytest.fixture(scope="module")
def converted(work: Path, subject: Callable[[str], Subject]) -> Callable[[str], Path]:
    """Name of a case -> the GGUF in f32 that crossdock writes of it, once."""

    @functools.cache
    def made(name: str) -> Path:
        return checks.export(subject(name).folder, work / f"{name}.gguf", "gguf", dtype="float32")

    return made


@pytest.fixture(scope="module")
def returned(work: Path, subject: Callable[[str], Subject], converted: Callable[[str], Path]) -> Callable[[str], Path]:
    """Name of a case -> the Hugging Face folder that crossdock writes of that GGUF, once."""

    @functools.cache
    def made(name: str) -> Path:
        folder = subject(name).folder
        config = folder if name in checks.NEEDS_CONFIG else None
        return checks.completed(converted(name), work / f"{name}-back", "hf", config, folder)

    return made


def of_case(recorded: Case, folder: Path) -> Subject:
    return Subject(
        recorded.name, folder, recorded.model_type, recorded.tokens, recorded.logits, recorded.gguf,
        recorded.recipe.tolerance,
    )  # fmt: skip


def bound(name: str) -> float:
    """Of the reference forward, as a share of the largest logit."""
    return checks.FORWARD_OF.get(case(name).model_type, checks.FORWARD)


def nothing(problems: list[str]) -> None:
    assert not problems, checks.short(problems)


def reference(name: str) -> checks.Recorded:
    found = case(name).gguf
    assert found is not None
    return found


@pytest.mark.parametrize("name", CONVERTED)
def test_hf_to_gguf_writes_the_converters_tensors(
    name: str, subject: Callable[[str], Subject], converted: Callable[[str], Path]
) -> None:
    nothing(checks.tensor_differences(converted(name), reference(name), subject(name).state))


@pytest.mark.parametrize("name", CONVERTED)
def test_hf_to_gguf_writes_the_converters_keys(name: str, converted: Callable[[str], Path]) -> None:
    nothing(checks.key_differences(converted(name), reference(name)))


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_reference_forward_computes_transformers_logits(name: str, subject: Callable[[str], Subject]) -> None:
    assert checks.forward_difference(subject(name).folder, subject(name)) <= bound(name)


@pytest.mark.parametrize("name", SUPPORTED)
def test_hf_to_hf_keeps_every_byte_and_the_configuration(
    name: str, tmp_path: Path, subject: Callable[[str], Subject]
) -> None:
    out = checks.export(subject(name).folder, tmp_path / "hf", "hf")
    nothing(checks.state_differences(checks.stored(out), checks.text_part(subject(name).state)))
    config = delivery.open(subject(name).folder).config
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id or 0,)
    if max(ends) >= config.vocab_size:  # transformers does not build a model of ends that are not in its vocabulary
        config = replace(config, eos_token_id=None)
    assert delivery.open(out).config == config


@pytest.mark.parametrize("name", CONVERTED)
def test_gguf_to_hf_returns_the_source(
    name: str, subject: Callable[[str], Subject], returned: Callable[[str], Path]
) -> None:
    source = subject(name)
    back = checks.stored(returned(name))
    nothing(checks.state_differences(back, checks.text_part(source.state), source.model_type))
    assert checks.forward_difference(returned(name), source) <= bound(name)


@pytest.mark.parametrize("name", CONVERTED)
def test_gguf_to_gguf_keeps_every_byte_and_key(
    name: str, tmp_path: Path, subject: Callable[[str], Subject], converted: Callable[[str], Path]
) -> None:
    before = converted(name)
    again = checks.completed(before, tmp_path / "again.gguf", "gguf", None, subject(name).folder)
    nothing(checks.tensor_differences(again, checks.listed(before)))
    assert checks.listed(again).keys == checks.listed(before).keys


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", CONVERTED)
def test_other_types_are_the_converters(
    name: str, outtype: str, tmp_path: Path, subject: Callable[[str], Subject]
) -> None:
    """Which tensor gets which type, and its bytes; those of decays, float32 in all, are held by the test of tensors."""
    options = FLAGS.get(outtype, {"quantize": outtype})
    out = checks.export(subject(name).folder, tmp_path / "m.gguf", "gguf", **options)
    got = {tensor.name: (tensor.type, tensor.sha256[:8]) for tensor in checks.listed(out).tensors}
    expected = reference(name).encoded[outtype]
    decays = {k: got[k] for k, v in expected.items() if k.endswith(".ssm_a") and got[k][0] == v[0]}
    nothing([f"{k} is {got.get(k)}, expected {v}" for k, v in expected.items() if got.get(k) != decays.get(k, v)])
    assert len(got) == len(expected)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("name", WIDE)
def test_blocks_are_those_of_the_reference_quantisers(
    name: str, kind: str, tmp_path: Path, subject: Callable[[str], Subject], converted: Callable[[str], Path]
) -> None:
    """A tensor that the converter packs as Q8_0 has this type, every other one the converter's."""
    out = checks.export(subject(name).folder, tmp_path / "m.gguf", "gguf", quantize=kind)
    source, got = read_gguf(converted(name)).tensors, read_gguf(out).tensors
    packed = 0
    for tensor, (of_q8, _) in reference(name).encoded["q8_0"].items():
        expected = kind.upper() if of_q8 == "Q8_0" else of_q8
        assert got[tensor].type == expected, tensor
        values_of = np.frombuffer(source[tensor].raw, np.float32).reshape(source[tensor].shape)
        if source[tensor].type == "F32":
            wanted = gguf.quants.quantize(values_of, gguf.GGMLQuantizationType[expected])
            assert got[tensor].raw == wanted.tobytes(), tensor
        packed += of_q8 == "Q8_0"
    assert packed


@pytest.mark.parametrize("name", ONCE)
def test_llama_cpp_computes_transformers_logits(
    name: str, tmp_path: Path, subject: Callable[[str], Subject], converted: Callable[[str], Path]
) -> None:
    source, path = subject(name), converted(name)
    without = case(name).recipe.without
    if without:  # a known limit of llama.cpp: it agrees where these parameters are zero
        state = {tensor: value * 0 if re.search(without, tensor) else value for tensor, value in source.state.items()}
        folder = write_folder(tmp_path / "reduced", case(name).config, state)
        source = replace(source, folder=folder, logits=transformers_logits(folder, source.tokens))
        path = checks.export(folder, tmp_path / "reduced.gguf", "gguf", dtype="float32")
    if name in PACKED:
        path = checks.unpacked_gguf(path, tmp_path / "unpacked.gguf")
    assert source.tolerance is not None
    assert checks.llama_difference(path, source) <= source.tolerance


@pytest.mark.parametrize("name", [name for name in ONCE if name not in PACKED])
def test_transformers_computes_the_same_from_what_comes_back(
    name: str, subject: Callable[[str], Subject], returned: Callable[[str], Path]
) -> None:
    assert checks.transformers_difference(returned(name), subject(name)) <= 1e-5


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_a_model_whose_family_is_not_there_yet_is_refused(name: str, subject: Callable[[str], Subject]) -> None:
    with pytest.raises(InputError) as caught:
        delivery.open(subject(name).folder)
    assert caught.value.exit_code == 3
    assert "config.json" in caught.value.problems[0].where


def test_every_name_that_is_not_there_yet_is_a_case() -> None:
    assert set(names()) >= NOT_YET


KIND_OF_VALUES = [
    ("matrix", "F32", (64, 100), 0.0, 0.1),
    ("around one", "F32", (6400,), 1.0, 0.2),
    ("around zero", "F32", (6400,), 0.0, 0.2),
    ("around a quarter", "F32", (6400,), 0.25, 0.05),
    ("decay", "F32", (6400,), 0.75, 1.5 / 12**0.5),
    ("scale", "F32", (6400,), 0.8, 0.4 / 12**0.5),
    ("sign", "F32", (64, 100), 0.0, 0.07),
    ("bytes", "U8", (6400,), 127.5, 256 / 12**0.5),
]


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "mean", "deviation"), KIND_OF_VALUES, ids=[k[0] for k in KIND_OF_VALUES]
)
def test_made_weights_have_the_values_of_their_kind(
    kind: str, dtype: str, shape: tuple[int, ...], mean: float, deviation: float
) -> None:
    made = values(Stored("a.weight", dtype, shape, kind), 3).astype(np.float64)
    assert made.mean() == pytest.approx(mean, abs=4 * deviation / 80)
    assert made.std() == pytest.approx(deviation, rel=0.05)
    other = values(Stored("b.weight", dtype, shape, kind), 3)
    assert not np.array_equal(made, other)
