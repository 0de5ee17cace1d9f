"""Scales of fp8 training, as tensors of a target share them: the largest of all parts, or none. Reads nothing.

What a target stores as one tensor, or an engine loads as one, has one scale: vLLM and TensorRT-LLM take the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

from crossdock.formats.target import Wanted

Scales = tuple[float, float]


def of_parts(parts: Sequence[Scales | None]) -> Scales | None:
    """Scales of the input and of the weight that hold for all parts; None where one has none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) != len(parts):
        return None
    return max(one for one, _ in known), max(other for _, other in known)


def shared(tensors: Sequence[Wanted], groups: Sequence[str]) -> list[Wanted]:
    """`tensors` with one pair of scales for those that belong together: "q_proj k_proj v_proj" of one layer."""
    together: dict[tuple[str, str, str], list[int]] = {}
    for number, tensor in enumerate(tensors):
        for group in groups:
            for word in group.split():
                if tensor.name.endswith(f".{word}.weight"):
                    key = (group, tensor.part, tensor.name.removesuffix(f"{word}.weight"))
                    together.setdefault(key, []).append(number)
    out = list(tensors)
    for numbers in together.values():
        scales = of_parts([tensors[number].scales for number in numbers])
        for number in numbers:
            out[number] = tensors[number]._replace(scales=scales)
    return out
