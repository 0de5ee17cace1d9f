"""What Megatron saves beside decoders, named in one sentence: encoders, encoders with decoders, adapters alone.

Names from Megatron-LM d98e8a6 (`megatron/core/models/T5`, `bert`), core_v0.10.0 (`megatron/legacy/model`) and
Megatron-Bridge 0.6.2 (`peft/`), run and read back.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from crossdock.errors import FormatError

_ADAPTER = re.compile(r"\.adapter\.(adapter_\w+\.)?linear_(in|out)\.weight\Z")
_CROSS = re.compile(r"(^|\.)decoder\.layers\.(\d+\.)?(cross_attention|inter_attention)\.")
_ENCODER = re.compile(r"(^|\.)encoder\.(layers|final_(layer)?norm)\.")
_BERT = re.compile(r"(^|\.)(binary_head|pooler)\.|(^|\.)lm_head\.dense\.|tokentype_embeddings\.")


def refuse_other_models(names: Collection[str], where: str) -> None:
    """Raises FormatError when `names`, as they are stored, are of a model that is not a decoder alone."""
    adapters = [name for name in names if _ADAPTER.search(name)]
    if adapters:
        raise FormatError(
            "pairs of an adapter (LoRA of Megatron-Bridge) beside the weights of a model",
            where=where,
            got=f"{len(adapters)} tensors such as {adapters[0]}",
            fix="merge it with Megatron-Bridge (examples/peft/merge_lora.py) and convert the merged checkpoint",
        )
    if any(map(_CROSS.search, names)):
        raise FormatError(
            "an encoder and a decoder with cross attention (T5), of which crossdock has no family", where=where
        )
    if any(map(_BERT.search, names)) and (any(map(_ENCODER.search, names)) or not any("decoder." in n for n in names)):
        raise FormatError("an encoder (BERT), which predicts no next token: no target here holds it", where=where)
