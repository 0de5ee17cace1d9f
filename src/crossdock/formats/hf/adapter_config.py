"""adapter_config.json of PEFT's LoRA: every option obeyed, without effect on a trained adapter, or refused by name.

Facts: peft 0.21.2 (`tuners/lora/config.py`, `tuners/lora/layer.py`, `utils/other.py: get_pattern_key`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from crossdock.errors import ConfigError, Problem

FILE: Final = "adapter_config.json"
OBEYED: Final = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
     "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "trainable_token_indices",
     "target_parameters", "use_dora", "bias", "init_lora_weights", "fan_in_fan_out"}
)  # fmt: skip
WITHOUT_EFFECT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "base_model_name_or_path": "--base names the model",
        "revision": "--base names the model",
        "task_type": "says for what the model was wrapped",
        "auto_mapping": "says for what the model was wrapped",
        "inference_mode": "whether it may be trained further",
        "peft_version": "which program wrote it",
        "lora_dropout": "takes part in training alone",
        "runtime_config": "where computation takes place",
        "eva_config": "how A was initialised",
        "megatron_core": "a module to be imported, which megatron_config alone needs",
        "qalora_group_size": "of use_qalora",
        "ensure_weight_tying": "a change of a matrix that is tied is refused in any case",
        "loftq_config": "of init_lora_weights, which is judged by its own value",
    }
)
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "use_qalora": "QALoRA pools the inputs in groups: no matrix is added to the weight",
        "use_bdlora": "BD-LoRA's matrices are block-diagonal",
        "lora_bias": "a bias of B changes the layer's bias, which the base may lack",
        "alora_invocation_tokens": "an activated LoRA acts from its invocation tokens on: it cannot be merged",
        "layer_replication": "the model has more layers than its base",
        "arrow_config": "Arrow chooses among adapters, token by token",
        "kasa_config": "KaSA has singular values between A and B, and cuts the base's",
        "monteclora_config": "MonteCLoRA mixes samples of its pairs",
        "velora_config": "VeLoRA is not read",
        "corda_config": "CorDA takes the adapter out of the base's weights",
        "lora_ga_config": "LoRA-GA takes the adapter out of the base's weights",
        "megatron_config": "the layers are Megatron's, cut over ranks",
    }
)
# inits that leave the base's weights as they are; others take the adapter out of them first
_PLAIN_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
_NESTED = re.compile(r"\)[*+{]|[*+}]\)?[*+{]")
_REPEATS = re.compile(r"(?<!\\)[*+{]")


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says that matters: keys are PEFT's."""

    keys: Mapping[str, Any]
    where: str

    def rank(self, module: str) -> int:
        """The rank of the pair of `module`."""
        found: int = self._by_pattern("rank_pattern", "r", module)
        return found

    def scale(self, module: str) -> float:
        """What the product of the pair of `module` is multiplied by."""
        rank, alpha = self.rank(module), float(self._by_pattern("alpha_pattern", "lora_alpha", module))
        return alpha / math.sqrt(rank) if self.keys.get("use_rslora") else alpha / rank

    def _by_pattern(self, patterns: str, key: str, module: str) -> Any:
        table = self.keys.get(patterns) or {}
        return next((table[one] for one in table if re.match(rf"(.*\.)?({one})$", module)), self.keys.get(key, 8))

    def parameters_of(self, module: str) -> tuple[str, ...]:
        """The parameters of `module` that `target_parameters` names: ("gate_up_proj", "down_proj") of experts."""
        named = (text.rpartition(".") for text in self.keys.get("target_parameters") or ())
        return tuple(last for owner, _, last in named if _ends(module, owner))

    def wraps(self, module: str) -> bool:
        """Whether PEFT would put a pair into `module`. A pattern for whole names is taken to be right."""
        if self.parameters_of(module):
            return True
        wanted, excluded = self.keys.get("target_modules"), self.keys.get("exclude_modules")
        if isinstance(excluded, list) and any(_ends(module, name) for name in excluded):
            return False
        layers = self.keys.get("layers_to_transform")
        if layers is not None:
            numbers = [int(part) for part in module.split(".") if part.isdecimal()]
            if not numbers or numbers[0] not in (layers if isinstance(layers, list) else [layers]):
                return False
        return not isinstance(wanted, list) or any(_ends(module, name) for name in wanted)

    def token_rows(self, module: str) -> tuple[int, ...] | None:
        """Which rows of `module` were trained; None where the configuration does not say."""
        found = self.keys.get("trainable_token_indices")
        if isinstance(found, Mapping):
            found = next((rows for name, rows in found.items() if _ends(module, name)), None)
        return None if found is None else tuple(found)


def checked(keys: Mapping[str, Any], where: str) -> AdapterConfig:
    """The configuration, when crossdock does all that it says. Raises ConfigError with every option that it does not.

    A pattern that could take long to match is refused: the file may be anybody's.
    """
    kind = keys.get("peft_type")
    if kind != "LORA":
        raise ConfigError("not a LoRA adapter", where=f"{where}: peft_type", expected="'LORA'", got=repr(kind))
    problems = [
        Problem(
            f"this option of PEFT is not obeyed: {reason}", f"{where}: {name}", got=_short(keys[name]),
            fix="merge it with peft (merge_and_unload), and pass the merged folder",
        )
        for name, reason in REFUSED.items()
        if keys.get(name)
    ]  # fmt: skip
    known = OBEYED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    problems += [
        Problem("an option of PEFT that crossdock does not know", f"{where}: {name}", got=_short(value))
        for name, value in keys.items()
        if name not in known and value
    ]
    init = keys.get("init_lora_weights")
    if not any(init is one or (isinstance(init, str) and init == one) for one in _PLAIN_INITS):
        problems.append(
            Problem(
                "this initialisation takes the adapter out of the base's weights, so it does not fit the base as it is",
                f"{where}: init_lora_weights",
                got=_short(init),
                fix="save it with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
            )
        )
    problems += [Problem(what, f"{where}: {name}", got=_short(keys.get(name))) for name, what in _misshapen(keys)]
    if problems:
        raise ConfigError(problems)
    return AdapterConfig(keys, where)


def _misshapen(keys: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(option, what is wrong) for values that are not of PEFT's types."""
    out: list[tuple[str, str]] = []
    if not _count(keys.get("r", 8)):
        out.append(("r", "not a rank"))
    if not _number(keys.get("lora_alpha", 8)):
        out.append(("lora_alpha", "not a number"))
    if keys.get("bias", "none") not in ("none", "all", "lora_only"):
        out.append(("bias", "not one of 'none', 'all', 'lora_only'"))
    for name in ("use_rslora", "use_dora", "fan_in_fan_out"):
        if keys.get(name) not in (None, True, False):
            out.append((name, "neither true nor false"))
    for name, good in (("rank_pattern", _count), ("alpha_pattern", _number)):
        table = keys.get(name) or {}
        if not isinstance(table, Mapping) or not all(good(value) for value in table.values()):
            out.append((name, "not a table of numbers by module"))
        elif not all(_quick(pattern) for pattern in table):
            out.append((name, "a pattern that could take long to match, or that is not a regular expression"))
    for name in ("modules_to_save", "target_parameters"):
        if not _texts(keys.get(name) or []):
            out.append((name, "not a list of names"))
    for name in ("target_modules", "exclude_modules"):
        if not isinstance(keys.get(name), str) and not _texts(keys.get(name) or []):
            out.append((name, "neither a list of names nor a pattern"))
    layers = keys.get("layers_to_transform")
    if layers is not None and not _numbers(layers if isinstance(layers, list) else [layers]):
        out.append(("layers_to_transform", "not numbers of layers"))
    rows = keys.get("trainable_token_indices")
    if rows is not None and not all(map(_numbers, rows.values() if isinstance(rows, Mapping) else [rows])):
        out.append(("trainable_token_indices", "not numbers of tokens"))
    return out


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 31 for one in value
    )


def _quick(pattern: str) -> bool:
    """Whether a pattern is short, has at most two repeats, and none of a repeat: then matching is quick."""
    if len(pattern) > 500 or len(_REPEATS.findall(pattern)) > 2 or _NESTED.search(pattern):
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
