"""Checkpoints of other programs, and paths at which nothing lies, are named with a way out; which files of a Hugging
Face folder are the model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import crossdock
from crossdock.errors import FormatError, InputError, NotACheckpointError
from support.hf_models import make_hf

FOLDERS: dict[str, tuple[list[str], str, str]] = {
    "verl": (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "huggingface/config.json"],
             r"FSDP rank files \(2 ranks\)", "verl.model_merger"),
    "DeepSpeed": (["zero_to_fp32.py", "latest", "global_step5/mp_rank_00_model_states.pt"],
                  "DeepSpeed ZeRO", "zero_to_fp32.py"),
    "DeepSpeed in a Trainer's folder": (["config.json", "zero_to_fp32.py", "trainer_state.json"],
                                        "DeepSpeed ZeRO", "zero_to_fp32.py"),
    "GPT-NeoX": (["latest", "global_step5/layer_00-model_00-model_states.pt"], "GPT-NeoX", "convert_neox_to_hf"),
    "GPT-NeoX, one step": (["layer_00-model_00-model_states.pt", "mp_rank_00_model_states.pt"], "GPT-NeoX", "convert"),
    "nanotron": (["checkpoint_metadata.json", "model_config.json", "model/x.safetensors"], "nanotron", "convert"),
    "NeMo 1": (["model_config.yaml", "model_weights/.metadata"], "NeMo 1", "model_weights"),
    "Meta": (["params.json", "consolidated.00.pth", "tokenizer.model"], "Meta's original", "Hugging Face version"),
    "Mistral": (["params.json", "consolidated.safetensors", "tekken.json"], "Mistral's original", "use the Hugging"),
    "cache": (["blobs/x", "refs/main", "snapshots/abc/config.json"], "cache folder of the Hub", "snapshots/"),
    "Accelerate": (["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"], "Accelerate", "pytorch_model_fsdp_0"),
    "GGUF parts": (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "a folder of GGUF files", "00001-of-00002"),
    "engines": (["config.json", "rank0.engine"], "TensorRT engines", "checkpoint"),
    "Flax": (["config.json", "flax_model.msgpack"], "a Flax model", "from_flax"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_a_folder_of_another_program_is_named(tmp_path: Path, kind: str) -> None:
    names, said, way_out = FOLDERS[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(NotACheckpointError, match=said) as caught:
        crossdock.open(tmp_path)
    assert way_out in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_world_size_4_rank_0.pt", "FSDP rank files"),
        ("m.nemo", "NeMo 1 archive"),
        ("consolidated.00.pth", "Meta's original Llama format"),
        ("layer_00-model_00-model_states.pt", "GPT-NeoX"),
    ],
)
def test_a_file_of_another_program_is_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(NotACheckpointError, match=said):
        crossdock.open(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "m.gguf"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (tmp_path / name).write_text(pointer)
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(NotACheckpointError, match="Git LFS pointer"):
            crossdock.open(path)


@pytest.mark.parametrize(
    ("text", "said", "way_out"),
    [
        ("Qwen/Qwen3-0.6B", "path does not exist", "hf download Qwen/Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B", "a URL", "hf download Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "a URL", "hf download Qwen/Qwen3-0.6B"),
        ("s3://bucket/key", "a URL", "download it first"),
        ("gs://bucket/key", "a URL", "download it first"),
        ("./nothing", "path does not exist", "spelling"),
    ],
)
def test_what_is_not_a_path(text: str, said: str, way_out: str) -> None:
    with pytest.raises(NotACheckpointError, match=said) as caught:
        crossdock.open(text)
    assert way_out in caught.value.problems[0].fix


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf("llama", tmp_path_factory.mktemp("m"), dtype="float32")


def put(folder: Path, state: dict[str, Any], names: list[str], index: str = "") -> None:
    """`state` over files, and an index of them."""
    keys = sorted(state)
    size = -(-len(keys) // len(names))
    parts = {name: keys[at * size : (at + 1) * size] for at, name in enumerate(names)}
    for name, part in parts.items():
        save = torch.save if name.endswith(".bin") else save_file
        save({key: state[key] for key in part}, folder / name)  # type: ignore[operator]
    if index:
        weight_map = {key: name for name, part in parts.items() for key in part}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shards(count: int, stem: str = "model", suffix: str = "safetensors") -> list[str]:
    return [f"{stem}-{n + 1:05}-of-{count:05}.{suffix}" for n in range(count)]


@pytest.mark.parametrize("case", ["bin beside", "bin index beside", "index without its files", "older shards"])
def test_what_transformers_would_not_load_is_left_aside_and_named(model: Path, tmp_path: Path, case: str) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    truth = load_file(folder / "model.safetensors")
    older = {name: tensor * 2 for name, tensor in truth.items()}
    aside = "pytorch_model.bin"
    if case == "bin beside":
        put(folder, older, [aside])
    elif case == "bin index beside":
        put(folder, older, shards(2, "pytorch_model", "bin"), "pytorch_model.bin.index.json")
        aside = "pytorch_model-00001-of-00002.bin"
    elif case == "index without its files":
        put(folder, older, shards(2), "model.safetensors.index.json")
        (folder / shards(2)[1]).unlink()
        aside = "model.safetensors.index.json"
    else:
        (folder / "model.safetensors").unlink()
        put(folder, truth, shards(2), "model.safetensors.index.json")
        put(folder, older, shards(3))
        aside = shards(3)[0]
    checkpoint = crossdock.open(folder)
    assert any(aside in notice and "not read" in notice for notice in checkpoint.described.notices)
    crossdock.run(crossdock.plan(checkpoint, "hf"), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], truth[name]) for name in truth)


@pytest.mark.parametrize("case", ["file and index", "two sets of shards"])
def test_two_complete_sets_are_refused(model: Path, tmp_path: Path, case: str) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    truth = load_file(folder / "model.safetensors")
    if case == "file and index":
        put(folder, truth, shards(2), "model.safetensors.index.json")
    else:
        (folder / "model.safetensors").unlink()
        put(folder, truth, shards(2))
        put(folder, truth, shards(3))
    with pytest.raises(FormatError, match="complete sets") as caught:
        crossdock.open(folder)
    assert "model" in caught.value.problems[0].got + caught.value.problems[0].what


def test_weights_under_another_name_are_named(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "llama-tiny.safetensors")
    with pytest.raises(NotACheckpointError, match="under the names that transformers looks for") as caught:
        crossdock.open(folder)
    assert "llama-tiny.safetensors" in caught.value.problems[0].fix
    assert crossdock.open(folder / "llama-tiny.safetensors").config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("ending", "library"),
    [
        (".absmax", "bitsandbytes"), (".quant_state.bitsandbytes__nf4", "bitsandbytes"), ("._data", "quanto"),
        (".qweight", "GPTQ or AWQ"), ("_packed", "compressed-tensors"), ("_blocks", "mxfp4"),
    ],
)  # fmt: skip
def test_packed_weights_without_their_configuration(model: Path, tmp_path: Path, ending: str, library: str) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    truth = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj" + ("" if ending == ".qweight" else ".weight")
    save_file({**truth, name + ending: torch.zeros(4, dtype=torch.uint8)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=library) as caught:
        crossdock.open(folder)
    assert len(caught.value.problems) == 1
