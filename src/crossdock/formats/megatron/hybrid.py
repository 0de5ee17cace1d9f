"""Megatron's HybridModel as the GPTModel that it computes: each letter of its pattern is a layer with its own norm.

Where a mixer of tokens (`*`, `+`, `D`, `G`) and an MLP (`-`, `E`) follow each other in turn, the i-th of both are
layer i of a GPTModel; names, args and the stages of rank files are shown as that model's. Other patterns (Mamba's `M`)
stay as they are. Facts from Megatron-LM core_v0.16.1 to d98e8a6 (`megatron/training/arguments.py`,
`megatron/core/models/hybrid/hybrid_layer_allocation.py`, `hybrid_model.py`), which keeps the same numbers when it loads
a GPTModel's checkpoint (`dist_checkpointing/gpt_checkpoint_interop.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.errors import ConfigError, FormatError, Problem
from crossdock.formats.megatron.stages import MAX_LAYERS
from crossdock.formats.stored import Masters, StoredTensor, TrainingScales
from crossdock.layout.partitions import RankRanges

MIXERS, MLPS = "*+DG", "-E"
_LAYER = re.compile(r"decoder\.layers\.(\d{1,9})\.(.+)\Z")
_CHUNK = re.compile(r"pp(\d+)\.vpp(\d+)\Z")
_OF_MLP = ("mlp.", "pre_mlp_layernorm.")
_FINAL, _GPT_FINAL = "decoder.final_norm.", "decoder.final_layernorm."
_OWN = (
    "hybrid_layer_pattern", "hybrid_override_pattern", "hybrid_attention_ratio", "hybrid_mlp_ratio", "is_hybrid_model",
    "mtp_hybrid_override_pattern",
)  # fmt: skip
# names by which the letter of a layer is recognised, the first that fits; "*" and "-" are general and come last
_TELLING = (
    ("mixer.", "M"), ("self_attention.linear_kv_", "+"), ("self_attention.core_attention.indexer.", "D"),
    ("self_attention.in_proj.", "G"), ("self_attention.", "*"), ("mlp.router.", "E"), ("mlp.", "-"),
)  # fmt: skip
_SPECS = ("hybrid_stack_spec", "mamba_stack_spec")
UNSCALED = (
    "use_rope_scaling: Megatron's HybridModel (up to 0.20 dev) takes no scaling of rope, so a run that it trained"
    " computed without; it is written with the scaling, which is right for a GPTModel that was converted;"
    " --set use_rope_scaling=false leaves it out"
)

Key = tuple[str, str]  # part, name


@dataclass(frozen=True, slots=True)
class Stack:
    """The decoder's letters in order, and how many of them each pipeline segment has (one number: it does not say)."""

    letters: str
    segments: tuple[int, ...]

    @property
    def folds(self) -> bool:
        """Whether mixers and MLPs follow each other in turn, as in a GPTModel."""
        pairs = zip(self.letters[::2], self.letters[1::2], strict=False)
        return len(self.letters) % 2 == 0 and all(mixer in MIXERS and mlp in MLPS for mixer, mlp in pairs)


def stack_of(args: Mapping[str, Any], where: str) -> Stack | None:
    """The layers of a HybridModel; None when `args` are another model's.

    Raises ConfigError for a pattern with other letters, or of another length than num_layers.
    """
    layers = args.get("num_layers")
    pattern = args.get("hybrid_layer_pattern") or args.get("hybrid_override_pattern")
    if not pattern:
        ratios = [args.get(name) or 0.0 for name in ("hybrid_attention_ratio", "hybrid_mlp_ratio")]
        if not any(ratios) and not args.get("is_hybrid_model"):
            return None
        if type(layers) is not int or not 0 < layers <= MAX_LAYERS or not _are_ratios(ratios):
            raise ConfigError("the ratios of a HybridModel give no layers", where=where, got=f"{ratios}, {layers!r}")
        pattern = _of_ratios(layers, *ratios)
    if not isinstance(pattern, str) or len(pattern) > MAX_LAYERS or set(pattern) - set("M|/" + MIXERS + MLPS):
        raise ConfigError(
            "the pattern of the HybridModel is not understood",
            where=where,
            expected="M, *, -, E, G, +, D, with | between pipeline stages and / before multi-token prediction",
            got=repr(pattern)[:80],
        )
    main = pattern.partition("/")[0].split("|")
    letters = "".join(main)
    if isinstance(layers, int) and layers != len(letters):
        raise ConfigError(
            "the pattern of the HybridModel has another number of layers than args",
            where=where,
            expected=f"num_layers {layers}",
            got=f"{len(letters)} letters in {pattern[:80]!r}",
            cause="args that were changed after the run",
        )
    return Stack(letters, tuple(map(len, main)))


def stack_of_names(names: Collection[str], args: Mapping[str, Any], where: str) -> Stack | None:
    """The layers of a HybridModel whose args have no pattern; None for names of another model.

    Megatron's conversion tool writes such folders: without args where the GPTModel's were not in common.pt (from 0.19
    on), else with args that count both kinds of layers and have a pattern only where they had one (Megatron-LM d98e8a6,
    `tools/checkpoint/gpt_hybrid_conversion.py`, run). Raises ConfigError where args count other layers.
    """
    if not any(name.startswith(_FINAL) for name in names):
        return None
    letters: dict[int, str] = {}
    for name in sorted(names):
        if layer := _LAYER.match(name):
            letter = next((letter for part, letter in _TELLING if layer[2].startswith(part)), "")
            known = letters.get(int(layer[1]), "")
            letters[int(layer[1])] = letter if known in ("", "*", "-") and letter else known
    if sorted(letters) != list(range(len(letters))) or "" in letters.values():
        return None
    layers = args.get("num_layers")
    if isinstance(layers, int) and layers != len(letters):
        raise ConfigError(
            "a HybridModel without a pattern, with another number of layers than its args",
            where=where,
            expected=f"num_layers {layers}",
            got=f"{len(letters)} layers by their names",
            cause="args of another model",
        )
    return Stack("".join(letters[number] for number in range(len(letters))), (len(letters),))


def as_gpt(args: Mapping[str, Any], stack: Stack) -> dict[str, Any]:
    """Args of the GPTModel that computes what `stack`, which folds, computes with `args`."""
    out = {key: value for key, value in args.items() if key not in _OWN}
    spec = out.get("spec")
    if (spec[-1] if isinstance(spec, list) and spec else spec) in _SPECS:
        del out["spec"]
    mixers, mlps = stack.letters[::2], stack.letters[1::2]
    out["num_layers"] = len(mixers)
    if "E" in mlps:
        out["moe_layer_freq"] = [int(letter == "E") for letter in mlps]
    else:
        out |= {key: None for key in ("num_experts", "num_moe_experts") if key in out}
    if "G" in mixers:
        out["linear_attention_freq"] = [int(letter == "G") for letter in mixers]
    # these two count all layers of the stack, from 1
    for key in ("window_attn_skip_freq", "no_rope_freq"):
        every, numbers = out.get(key), range(0, len(stack.letters), 2)
        if isinstance(every, list) and len(every) == len(stack.letters):
            out[key] = [every[number] for number in numbers]
        elif type(every) is int and every > 0:
            divides = [(number + 1) % every == 0 for number in numbers]
            out[key] = [int(full == (key == "no_rope_freq")) for full in divides]
    # argument_utils.py gives it to a HybridModel since 0.18, whose args have this key first
    if "moe_paged_stash" in args and args.get("rotary_seq_len_interpolation_factor"):
        out["seq_len_interpolation_factor"] = args["rotary_seq_len_interpolation_factor"]
    return out


def stacked_args(args: Mapping[str, Any], stack: Stack) -> dict[str, Any]:
    """Args of a HybridModel that is not a GPTModel: its letters under one name, without stages, whatever said them."""
    old = ("hybrid_override_pattern", "hybrid_attention_ratio", "hybrid_mlp_ratio")
    return {**args, **{key: None for key in old if key in args}, "hybrid_layer_pattern": stack.letters}


@dataclass(frozen=True, slots=True)
class Fold:
    """How names of a HybridModel become a GPTModel's.

    ranges  of rank files: the letters [first, beyond the last) of each stage and chunk; {} where names are global
    """

    stack: Stack
    ranges: RankRanges = field(default_factory=dict)

    @property
    def gpt_ranges(self) -> RankRanges:
        """The GPTModel's layers of each stage and chunk: a layer is where its mixer is."""
        return {rank: ((first + 1) // 2, (end + 1) // 2) for rank, (first, end) in self.ranges.items()}

    def key(self, key: Key) -> Key:
        """(part, name) as the GPTModel has it. A layer whose MLP is on the next stage is shown on its mixer's."""
        part, name = key
        if name.startswith(_FINAL):
            return part, _GPT_FINAL + name.removeprefix(_FINAL)
        layer, chunk = _LAYER.match(name), _CHUNK.search(part)
        if layer is None:
            return key
        number = int(layer[1])
        if chunk is None or not self.ranges:
            return part, f"decoder.layers.{number // 2}.{layer[2]}" if number < len(self.stack.letters) else name
        first, end = self.ranges[("pp", int(chunk[1])), ("vpp", int(chunk[2]))]
        if number >= end - first:
            return key
        whole = (first + number) // 2
        for rank, (low, high) in self.gpt_ranges.items():
            if low <= whole < high:
                home = ".".join(f"{axis}{index}" for axis, index in rank)
                return part[: chunk.start()] + home, f"decoder.layers.{whole - low}.{layer[2]}"
        return key

    def tensors(self, tensors: Mapping[Key, StoredTensor]) -> dict[Key, StoredTensor]:
        """`tensors` under the GPTModel's names. Raises FormatError for a tensor that its letter does not have."""
        out, wrong = {}, []
        for key, tensor in tensors.items():
            problem = self._misplaced(key)
            if problem is not None:
                wrong.append(problem)
            part, name = self.key(key)
            out[part, name] = replace(tensor, name=name, part=part)
        if wrong:
            raise FormatError(wrong[:12])
        return out

    def scales(self, read: Callable[[], TrainingScales]) -> TrainingScales:
        """The scales of fp8 training under the GPTModel's names."""
        found = read()
        return replace(found, of={self.key(key): pairs for key, pairs in found.of.items()})

    def masters(self, read: Callable[[], Masters]) -> Masters:
        """The optimizer's float32 weights under the GPTModel's names."""
        found = read()
        return replace(found, of=self.tensors(found.of))

    def _misplaced(self, key: Key) -> Problem | None:
        layer, chunk = _LAYER.match(key[1]), _CHUNK.search(key[0])
        if layer is None:
            return None
        first = self.ranges[("pp", int(chunk[1])), ("vpp", int(chunk[2]))][0] if chunk and self.ranges else 0
        number = first + int(layer[1])
        if number >= len(self.stack.letters) or (number % 2 == 1) == layer[2].startswith(_OF_MLP):
            return None
        letter = self.stack.letters[number]
        return Problem(
            f"layer {number} of the HybridModel is {letter!r} in its pattern, which has no such tensor",
            where=f"{key[0]}/{key[1]}" if key[0] else key[1],
            expected="self_attention and input_layernorm" if letter in MIXERS else "mlp and pre_mlp_layernorm",
            cause="hybrid_layer_pattern in args is not that of the model that was saved",
        )


def _are_ratios(ratios: list[Any]) -> bool:
    return all(isinstance(ratio, int | float) and 0 <= ratio <= 1 for ratio in ratios) and sum(ratios) <= 1


def _of_ratios(count: int, attention: float, mlp: float) -> str:
    """The letters that ratios of attention and MLP layers stand for (pattern_from_ratios): both spread evenly."""
    letters = ["M"] * count
    attentions = round(count * attention)
    _spread(letters, "*", (count - attentions) / (attentions + 1))
    mlps = round(count * mlp)
    if mlps:
        _spread(letters, "-", (count - attentions - mlps) / mlps)
    return "".join(letters)


def _spread(letters: list[str], letter: str, every: float) -> None:
    left = every
    for number, before in enumerate(letters):
        if before != "M":
            continue
        if left < 0.5:
            letters[number] = letter
            left += every
        else:
            left -= 1
