"""Layers for multi-token prediction: left out of a target, or alone in it as a draft model.

Rules: llama.cpp at 0c1e57098, `--no-mtp` and `--mtp` of convert_hf_to_gguf.py. Integers and names only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from crossdock.errors import PlanError, UsageError
from crossdock.layout.lenses import Container
from crossdock.model.config import ModelConfig
from crossdock.planning.checkpoint import Checkpoint

SHARED: Final = frozenset({"embed", "norm", "head", "head_bias"})  # what a draft model has besides its own layers


def with_asked_layers(checkpoint: Checkpoint, options: Any) -> Checkpoint:
    """The checkpoint without its layers for multi-token prediction where `options.no_mtp` asks for that.

    Raises UsageError for contradicting options, PlanError for a draft model of a model that has no such layers.
    """
    left_out, alone = (bool(getattr(options, name, False)) for name in ("no_mtp", "mtp_only"))
    config = checkpoint.config
    if left_out and alone:
        raise UsageError("--no-mtp and --mtp-only leave nothing to write", fix="give one of them")
    if alone and not config.num_nextn_predict_layers:
        raise PlanError(
            "the model has no layers for multi-token prediction, so there is no draft model in it",
            where=str(checkpoint.source.root),
            cause="transformers leaves them out when it saves a model; the published checkpoint may have them",
            fix="leave out --mtp-only",
        )
    if not left_out or not config.num_nextn_predict_layers:
        return checkpoint
    count = config.num_nextn_predict_layers
    reduced = replace(config, num_nextn_predict_layers=0, nextn_embed=False, nextn_head=False)
    sentence = f"--no-mtp: {count} layer{'s' * (count > 1)} for multi-token prediction left out"
    described = replace(checkpoint.described, config=reduced, notices=(*checkpoint.described.notices, sentence))
    return replace(checkpoint, described=described)


def draft_model(containers: Sequence[Container], config: ModelConfig) -> list[Container]:
    """The containers of layers for multi-token prediction, and of what they share with the model."""
    return [container for container in containers if _of_draft(container, config)]


def _of_draft(container: Container, config: ModelConfig) -> bool:
    return all(
        lens.tensor in SHARED
        or lens.tensor.startswith("nextn_")
        or any(place.axis == "layer" and place.low >= config.num_hidden_layers for place in lens.axes)
        for lens in container.lenses
    )
