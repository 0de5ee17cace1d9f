"""Models for adapters, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.peft_adapters import MODELS


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of MODELS, made when first asked for: float32, weights around 0.3."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            torch.manual_seed(3)
            kind, sizes = MODELS[name]
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
            for one in model.parameters():
                torch.nn.init.normal_(one, std=0.25)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
        return made[name]

    return folder
