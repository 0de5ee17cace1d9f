"""The text model of a composite: a language model with vision or audio towers, in one folder.

Its configuration is `text_config`, its names begin with language_model.model. or model.language_model., and lm_head
stands inside or outside of it. It is read as the text model alone; the towers are left out, and listed by name.
Facts: transformers 5.24, conversion_mapping.py and the models' modeling files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from crossdock.formats.stored import StoredTensor

TEXT: Final = re.compile(r"(?:model\.language_model|language_model\.model)\.")
HEAD: Final = "language_model."
TOWER: Final = re.compile(
    r"(?:model\.)?(?:vision_tower|vision_model|vision_embedder|visual|embed_vision|audio_tower|embed_audio"
    r"|vision_encoder|audio_encoder"
    r"|multi_modal_projector)\."
)
# what the configuration of the whole says for the text model as well
SHARED: Final = (
    "dtype", "torch_dtype", "transformers_version", "quantization_config", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the text model: `config` itself where it is not a composite's."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping) or "num_hidden_layers" in config or "n_layer" in config:
        return config
    out = {key: config[key] for key in SHARED if key in config} | dict(inner)
    if "tie_word_embeddings" in config:  # transformers ties the whole model
        out["tie_word_embeddings"] = config["tie_word_embeddings"]
    return out


def text_tensors(
    tensors: Mapping[tuple[str, str], StoredTensor],
) -> tuple[dict[tuple[str, str], StoredTensor], dict[str, str], int]:
    """(the text model's tensors under its own names, what is left out and why, its bytes) of a composite.

    Names that are neither the text model's nor a tower's stay as they are, and are refused by what reads them.
    """
    if not any(TEXT.match(name) or TOWER.match(name) for _, name in tensors):
        return dict(tensors), {}, 0
    out: dict[tuple[str, str], StoredTensor] = {}
    skipped: dict[str, str] = {}
    left = 0
    for (part, name), tensor in tensors.items():
        if TOWER.match(name):
            skipped[name] = "of a vision or audio tower: the text model is delivered"
            left += sum(extent.nbytes for extent in tensor.extents)
            continue
        new = TEXT.sub("model.", name, count=1) if TEXT.match(name) else name.removeprefix(HEAD)
        out[part, new] = replace(tensor, name=new)
    return out, skipped, left


def sentence(skipped: Mapping[str, str], left: int) -> str:
    """What is shown about the towers."""
    parts = dict.fromkeys(match[0] + "*" for name in skipped if (match := TOWER.match(name)))
    return (
        f"the text model of a composite: {len(skipped)} tensors of {', '.join(parts)} ({left:,} bytes) are left out; "
        "llama.cpp takes them as a file of its own (mmproj), which crossdock does not write"
    )
