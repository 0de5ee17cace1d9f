"""`--rename PATTERN=NAME`: a checkpoint whose layers have own names, under those of its format.

The same as megatron/core/export's `trtllm_conversion_dict` (Megatron-LM d98e8a6): names may be written with the layer's
number left out. Changes names only; whether a layout reads the new ones is found out where all tensors are resolved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from crossdock.errors import FormatError, Problem, UsageError
from crossdock.formats.stored import Source, StoredTensor, TrainingScales
from crossdock.layout.rules import stored_names
from crossdock.wording import nearest

NUMBER = re.compile(r"(?<=\.)\d+\.")
PLACE = re.compile(r"\{(layer|expert)\}")
LAYERS = re.compile(r"(?<=\blayers\.)")


def renamed(source: Source, renames: Mapping[str, str], layout_name: str) -> tuple[Source, tuple[str, ...]]:
    """`source` under new names, and a sentence for each rename.

    renames  pattern -> name. A pattern is a stored name with {layer} and {expert} for numbers, or with the layer's
             number left out. A name is one of the layout's, with the same placeholders or without the number, or the
             canonical tensors' ("attn_o"), or the exporter's ("attention_dense_weight").
    Raises UsageError with all patterns that match nothing and names that would be given twice; FormatError where the
    format finds the bytes by the name.
    """
    if not renames:
        return source, ()
    new: dict[tuple[str, str], str] = {}
    problems, sentences = [], []
    for pattern, text in renames.items():
        matched = _matches(source, pattern)
        if not matched:
            near = nearest(pattern, sorted({_bare(name) for _, name in source.tensors}), 3, 0.5)
            problems.append(Problem(f"--rename {pattern}: no tensor has this name", expected=" or ".join(near)))
            continue
        target = _target(text, layout_name, any("layer" in numbers for numbers in matched.values()))
        numbered = next(iter(matched.values())).keys()
        lacking = {m[1] for m in PLACE.finditer(target)} - numbered
        if lacking:
            needed = " and ".join(f"{{{name}}}" for name in sorted(lacking))
            problems.append(Problem(f"--rename {pattern}: {target} needs {needed} in the pattern"))
            continue
        new |= {key: target.format(**numbers) for key, numbers in matched.items()}
        sentences.append(f"--rename: {len(matched):,} tensors {pattern} are read as {target}")
    tensors: dict[tuple[str, str], StoredTensor] = {}
    for key, tensor in source.tensors.items():
        name = new.get(key, tensor.name)
        if name != tensor.name and any(extent.wrapping == "safetensors" for extent in tensor.extents):
            raise FormatError(
                "tensors in safetensors blobs are found by their names and cannot be renamed", where=tensor.name
            )
        if (key[0], name) in tensors:
            problems.append(Problem("--rename gives two tensors the same name", where=name))
        tensors[key[0], name] = replace(tensor, name=name)
    if problems:
        raise UsageError(problems)
    scales = None if source.scales is None else partial(_scales, source.scales, new)
    return replace(source, tensors=tensors, scales=scales), tuple(sentences)


def _scales(read: Callable[[], TrainingScales], new: Mapping[tuple[str, str], str]) -> TrainingScales:
    """The scales of training under the weights' new names."""
    found = read()
    return replace(found, of={(key[0], new.get(key, key[1])): pairs for key, pairs in found.of.items()})


def _matches(source: Source, pattern: str) -> dict[tuple[str, str], dict[str, str]]:
    """Tensors of this pattern, and the numbers in their names."""
    parts = PLACE.split(pattern)  # text, place, text, place, ...
    if len(set(parts[1::2])) != len(parts[1::2]):
        raise UsageError(f"--rename {pattern}: a placeholder stands there twice")
    shape = re.compile("".join(f"(?P<{p}>\\d+)" if n % 2 else re.escape(p) for n, p in enumerate(parts)))
    out: dict[tuple[str, str], dict[str, str]] = {}
    for key in source.tensors:
        if match := shape.fullmatch(key[1]):
            out[key] = match.groupdict()
        elif not parts[1:] and _bare(key[1]) == pattern and (number := NUMBER.search(key[1])):
            out[key] = {"layer": number[0][:-1]}
    return out


def _bare(name: str) -> str:
    """A name without its first number, which is the layer's."""
    return NUMBER.sub("", name, count=1)


def _target(text: str, layout_name: str, by_layer: bool) -> str:
    """What the user's name stands for, with {layer} where the tensors are one per layer."""
    known = stored_names(layout_name)
    names = known.get(" ".join(text.split()), (text,))
    fitting = [name for name in names if ("{layer" in name) == by_layer]
    target = re.sub(r"\{(layer|expert)[^}]*\}", r"{\1}", (fitting or names)[0])
    return LAYERS.sub("{layer}.", target, count=1) if by_layer and "{layer" not in target else target
