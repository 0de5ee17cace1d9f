"""Weights that a library packed for its own kernels, known by what it stores beside them where nothing else says so."""

from __future__ import annotations

import re
from collections.abc import Iterable

from crossdock.errors import FormatError

_FIX = "pass the folder of the unquantised model, or load it with that library, dequantise and save it"
# what a name ends in -> the library
_SIGNS = (
    (re.compile(r"\.(absmax|quant_map|nested_absmax|quant_state\.bitsandbytes__\w+|SCB)\Z"), "bitsandbytes"),
    (re.compile(r"\.weight\._(data|scale|shift|zeropoint)\Z"), "quanto"),
    (re.compile(r"\.(qweight|qzeros|g_idx)\Z"), "GPTQ or AWQ"),
    (re.compile(r"\.weight_(packed|shape|zero_point)\Z"), "compressed-tensors"),
    (re.compile(r"_(blocks|scales)\Z"), "mxfp4"),
    (re.compile(r"\.(W_q|meta)\Z"), "HQQ"),
    (re.compile(r"\.(codes|codebooks)\Z"), "AQLM"),
)  # fmt: skip


def refuse_quantised(names: Iterable[str], where: str) -> None:
    """Raise FormatError that names the library when tensors are there that only its quantisation has."""
    listed = list(names)
    for sign, library in _SIGNS:
        found = [name for name in listed if sign.search(name)]
        if found:
            raise FormatError(
                f"the weights are quantised ({library}), which crossdock does not read",
                where=where,
                got=f"{len(found)} tensors such as {found[0]}",
                cause="config.json does not declare it: quantization_config is missing",
                fix=_FIX,
            )
