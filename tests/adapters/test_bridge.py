"""LoRA checkpoints that Megatron-Bridge saved, against what its own exporter makes of them and peft merges."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import crossdock
from crossdock.errors import FormatError, UsageError
from support.peft_adapters import logits_of, made_model

SIZES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 250, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
           "norm_topk_prob": True}  # fmt: skip
BASES = {"llama": ("llama", SIZES | {"head_dim": 8}), "qwen3moe": ("qwen3_moe", SIZES | EXPERTS)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of the sizes of those that the adapters were trained on."""
    return {name: made_model(tmp_path_factory.mktemp(name), *kind) for name, kind in BASES.items()}


@pytest.mark.parametrize("name", BASES)
def test_merged_it_is_what_peft_makes_of_bridges_export(
    name: str, bases: dict[str, Path], megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = megatron_checkpoint(f"{name}-bridge062-lora-bf16")
    checkpoint = crossdock.open(adapter, base=bases[name])
    crossdock.run(crossdock.plan(checkpoint, "hf"), tmp_path / "hf", memory=1 << 20, workers=2)
    assert crossdock.verify(tmp_path / "hf", checkpoint).ok
    wanted = logits_of(bases[name], adapter.with_name(f"{name}-bridge062-lora-as-peft"))
    assert np.abs(logits_of(bases[name]) - wanted).max() > 1e-2 * np.abs(wanted).max()
    assert np.abs(logits_of(tmp_path / "hf") - wanted).max() < 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("name", BASES)
def test_as_peft_it_is_bridges_export(
    name: str, bases: dict[str, Path], megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Tensor for tensor: one pair of qkv becomes three, which share their A; experts are apart."""
    adapter = megatron_checkpoint(f"{name}-bridge062-lora-bf16")
    crossdock.export(adapter, tmp_path / "peft", "peft", base=bases[name], merge=False)
    mine = load_file(tmp_path / "peft/adapter_model.safetensors")
    theirs = load_file(adapter.with_name(f"{name}-bridge062-lora-as-peft") / "adapter_model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(mine[one].equal(theirs[one].float()) for one in mine)


def edited(adapter: Path, folder: Path, pattern: str, text: str) -> Path:
    """The same checkpoint with another run_config.yaml."""
    shutil.copytree(adapter, folder)
    file = next(folder.glob("iter_*/run_config.yaml"))
    file.write_text(re.sub(pattern, text, file.read_text()))
    return folder


REFUSED = {
    "another kind": (r"peft\.lora\.LoRA", "peft.dora.DoRA", "peft: _target_: not a LoRA adapter"),
    "a rank of its own for experts": ("normalize_moe_lora: false", "normalize_moe_lora: true", "normalize_moe_lora"),
    "shared outer matrices": ("experts_shared_outer_loras: false", "experts_shared_outer_loras: true", "share one"),
    "another rank": (r"\n  dim: 4", "\n  dim: 5", "another rank than the configuration states"),
    "an unknown option": (r"\n  dim: 4", "\n  dim: 4\n  magic: 1", "peft: magic: an option of Megatron-Bridge"),
    "no alpha": (r"\n  alpha: 8", "\n  alpha: null", "peft: alpha: not a positive whole number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_obeyed_is_refused_by_name(
    name: str, bases: dict[str, Path], megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    pattern, text, sentence = REFUSED[name]
    adapter = edited(megatron_checkpoint("llama-bridge062-lora-bf16"), tmp_path / "adapter", pattern, text)
    with pytest.raises(FormatError) as caught:
        crossdock.open(adapter, base=bases["llama"])
    assert sentence in str(caught.value)


def test_without_its_configuration_the_scale_is_unknown(
    bases: dict[str, Path], megatron_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(megatron_checkpoint("llama-bridge062-lora-bf16"), tmp_path / "adapter")
    next(adapter.glob("iter_*/run_config.yaml")).unlink()
    with pytest.raises(FormatError, match=r"an adapter without run_config\.yaml"):
        crossdock.open(adapter, base=bases["llama"])


def test_alone_it_is_not_a_model(megatron_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="this is an adapter, not a model"):
        crossdock.open(megatron_checkpoint("llama-bridge062-lora-bf16"))
