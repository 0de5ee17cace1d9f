"""Models for adapters, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.peft_adapters import MODELS, made_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of MODELS, made when first asked for: float32, weights around 0.3."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = made_model(tmp_path_factory.mktemp(name), *MODELS[name])
        return made[name]

    return folder
