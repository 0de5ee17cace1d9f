"""The text model of a model that sees or hears: Megatron-Bridge saves it under `language_model.`, towers beside it.

Names from Megatron-Bridge 067f987 (`models/qwen_vl/qwen3_vl_bridge.py`, `models/gemma_vl`, `models/ministral3`) and
slime 624b824 (`megatron_to_hf/qwen3_5.py`).
"""

from __future__ import annotations

from collections.abc import Collection

TEXT = "language_model."
TOWERS = ("vision_model.", "vision_projection.", "vision_tower.", "multi_modal_projector.", "visual.", "audio_model.",
          "audio_projection.", "audio_tower.")  # fmt: skip
NOTICE = "the model sees or hears: its text model is exported, and the towers beside it are left out"
REASON = "not of the text model"


def is_beside_text(names: Collection[str]) -> bool:
    """Whether `names` are those of a text model under `language_model.` and of known towers alone."""
    texts = sum(name.startswith(TEXT) for name in names)
    return texts > 0 and all(name.startswith((TEXT, *TOWERS)) for name in names)
