"""Megatron-Bridge's LoRA checkpoints: pairs beside each linear layer, their scale in run_config.yaml's `peft`.

Facts: Megatron-Bridge 0.6.2 (`peft/lora.py`, `peft/adapter_wrapper.py`), saved and read back; see `docs/adapters.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from crossdock.errors import FormatError, Problem
from crossdock.formats.adapter import Adapter, StoredPair
from crossdock.formats.megatron.bridge import FILE, read_run_config_section
from crossdock.formats.stored import StoredTensor

_ANY = re.compile(r"(?P<module>.+)\.adapter\.(?P<rest>.+)\Z")
_KIND: Final = "megatron.bridge.peft.lora.LoRA"
WITHOUT_EFFECT: Final = frozenset(
    {"_target_", "target_modules", "exclude_modules", "canonical_mapping", "dropout", "dropout_position",
     "lora_A_init_method", "lora_B_init_method", "lora_dtype", "a2a_experimental", "share_expert_adapters",
     "sequence_parallel_input_regather"}
)  # fmt: skip
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "normalize_moe_lora": "the pairs of experts have a rank and a scale of their own",
        "experts_shared_outer_loras": "experts share one of their two matrices",
        "params_to_save": "other weights were trained besides the pairs",
    }
)


def is_adapter(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether these are the tensors of an adapter: all have its mark in their names."""
    return bool(tensors) and all(_ANY.match(name) for name in tensors)


def adapter_of(tensors: Mapping[str, StoredTensor], folder: Path) -> Adapter:
    """The adapter that `tensors` of `folder` are. Raises FormatError with every option and tensor that is not read."""
    if not (folder / FILE).is_file():
        raise FormatError(
            f"an adapter without {FILE}, which says what its pairs are multiplied by",
            where=str(folder),
            fix="copy the file that Megatron-Bridge saved beside it",
        )
    options = read_run_config_section(folder / FILE, "peft")
    where = f"{folder / FILE}: peft"
    problems = _refused(options if isinstance(options, Mapping) else {}, where)
    if problems:
        raise FormatError(problems)
    rank, alpha = options["dim"], options["alpha"]
    pairs = []
    for name, a in tensors.items():
        match = _ANY.match(name)
        if match is None or match["rest"] not in ("linear_in.weight", "linear_out.weight"):
            problems.append(Problem("the adapter has a tensor that no rule reads", where=name))
            continue
        module = match["module"]
        if match["rest"] == "linear_out.weight":
            if f"{module}.adapter.linear_in.weight" not in tensors:
                problems.append(Problem("its other half linear_in.weight is missing", where=name))
            continue
        b = tensors.get(f"{module}.adapter.linear_out.weight")
        if b is None:
            problems.append(Problem("its other half linear_out.weight is missing", where=name))
        elif len(a.shape) < 2 or a.shape[-2] != rank or b.shape[-1:] != (rank,):
            problems.append(
                Problem(
                    "the pair has another rank than the configuration states", name, str(rank), f"{a.shape}, {b.shape}"
                )
            )
        else:
            pairs.append(StoredPair((f"{module}.weight",), a, b, "linear", rank, alpha / rank))
    if problems:
        raise FormatError(problems)
    base = read_run_config_section(folder / FILE, "checkpoint")
    named = base.get("pretrained_checkpoint") if isinstance(base, Mapping) else None
    return Adapter("megatron", tuple(pairs), base=named if isinstance(named, str) else "")


def _refused(options: Mapping[str, Any], where: str) -> list[Problem]:
    kind = options.get("_target_")
    if kind != _KIND:
        return [Problem("not a LoRA adapter", f"{where}: _target_", repr(_KIND), repr(kind))]
    problems = [
        Problem(
            f"this option of Megatron-Bridge is not obeyed: {reason}",
            f"{where}: {name}",
            fix="merge it with Megatron-Bridge (examples/peft/merge_lora.py) and convert the merged checkpoint",
        )
        for name, reason in REFUSED.items()
        if options.get(name)
    ]
    known = WITHOUT_EFFECT | REFUSED.keys() | {"dim", "alpha"}
    problems += [
        Problem("an option of Megatron-Bridge that crossdock does not know", f"{where}: {name}", got=repr(value)[:80])
        for name, value in options.items()
        if name not in known and value
    ]
    for name in ("dim", "alpha"):
        value = options.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 1 << 16:
            problems.append(Problem("not a positive whole number", f"{where}: {name}", got=repr(value)[:80]))
    return problems
