"""What a model would weigh as a file of each target: from its tensors' shapes and the codecs' block sizes.

Tensor data only; headers and tokenizers come on top. Matrices take the type asked for, everything of one
dimension stays float32 in GGUF, and a row that is not whole blocks falls back to float16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Final

from crossdock.codecs.codec import encoded_size
from crossdock.codecs.registry import get
from crossdock.layout.lenses import containers, geometry_of
from crossdock.layout.rules import layout, unheld

if TYPE_CHECKING:
    from crossdock.model.config import ModelConfig
    from crossdock.model.family import Family

TYPES: Final = (
    ("hf", "float32"),
    ("hf", "bfloat16"),
    ("gguf", "float32"),
    ("gguf", "float16"),
    ("gguf", "q8_0"),
    ("gguf", "q5_0"),
    ("gguf", "q4_0"),
)

Shape = tuple[int, ...]


def shapes(family: Family, config: ModelConfig) -> Counter[Shape]:
    """Shape -> how many tensors of a Hugging Face folder of this model have it; nothing where the family has none."""
    if unheld("hf", family) is not None:
        return Counter()
    rules = layout("hf", family)
    present = family.present(config)
    values = config.as_dict()
    geometry = geometry_of(family, config, numbers=rules.numbering(values))
    out: Counter[Shape] = Counter()
    for rule in rules.rules:
        if all(name in present for name in rule.tensors) and (rule.when is None or rule.when.evaluate(values)):
            out.update(container.shape for container in containers(rule, rule.patterns[0], geometry))
    return out


def parameters(family: Family, config: ModelConfig) -> int:
    """How many numbers the model's tensors hold."""
    sizes = family.sizes(config)
    return sum(sizes.elements(decl.axes, family.layers_of(decl, config)) for decl in family.present(config).values())


def weights(tensors: Mapping[Shape, int]) -> list[tuple[str, str, int]]:
    """(target, type, bytes) for what can be asked for; nothing for what is no model of Hugging Face's kind."""
    if not tensors:
        return []
    return [
        (target, dtype, sum(count * _size(shape, dtype, target) for shape, count in tensors.items()))
        for target, dtype in TYPES
    ]


def _size(shape: Shape, dtype: str, target: str) -> int:
    codec = get("float32" if target == "gguf" and len(shape) < 2 else dtype)
    if shape and shape[-1] % codec.block:
        codec = get("float16")
    return encoded_size(codec, prod(shape))
