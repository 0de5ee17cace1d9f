"""What crossdock makes of one model of a family, held against references (`Subject`). A check returns what differs.

The tests hold the recorded cases to it, scripts/compare_families a whole folder of others.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_cases import Recorded, listed, write_folder
from made_weights import Values, read_safetensors
from numpy.typing import NDArray

import crossdock.delivery as delivery
from crossdock.errors import ConfigError, CrossdockError
from crossdock.model.forward import forward
from crossdock.running.weights import CheckpointWeights
from oracles.files import read_gguf
from oracles.llama_engine import llama_logits
from oracles.transformers_engine import transformers_logits

MEMORY = 64 << 20
FORWARD = 2e-6  # of the largest logit: PyTorch adds up in another order in another version or on another processor
# model type -> the bound of layers that magnify roundings, as measured: with multi-head latent attention, transformers'
# own logits are up to 2.2e-6 away from those in float64; with the 64 layers of exaone4, up to 1.1e-5; of exaone 1.9e-6,
# where ours are 1e-6
FORWARD_OF: Mapping[str, float] = (
    dict.fromkeys(
        ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "kimi_linear", "bailing_hybrid"),
        2e-5,  # 1.8e-5: the delta rule
    )
    | dict.fromkeys(("mamba", "mamba2", "jamba", "falcon_h1", "bamba", "granitemoehybrid", "nemotron_h"), 1.5e-5)
    # 1.2e-5: scores without a scale; transformers' own logits are up to 6.4e-6 away from those in float64
    | dict.fromkeys(("gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified"), 1.5e-5)
    | {"hy_v4": 4e-6, "dots3_note_text": 4e-6}
    | {"falcon_mamba": 1.5e-5, "deepseek_v3": 4e-6, "glm4_moe_lite": 4e-6, "exaone": 3e-6, "exaone4": 1.1e-5}
)
# cases of which GGUF does not hold the whole configuration, so that GGUF -> HF takes --config
NEEDS_CONFIG: Mapping[str, str] = {"falcon_h1": "all multipliers are folded into the matrices"}
TOWERS = ("vision", "visual", "audio", "multi_modal_projector")  # parts of names of what is not the text model
# model types whose norms GGUF holds plus 1, and those of their text models alone and with experts
PLUS_ONE = frozenset(
    f"{kind}{part}"
    for kind in ("gemma", "gemma2", "gemma3", "nemotron", "qwen3_next", "qwen3_5", "qwen4_exp")
    for part in ("", "_text", "_moe", "_moe_text")
)
# expression of a tensor's name -> model types and the largest absolute difference after GGUF -> HF, of values that pass
# through float32 arithmetic; None: of all types
MAPPED: Sequence[tuple[str, frozenset[str] | None, float]] = (
    (r"norm\w*\.weight$", PLUS_ONE, 2**-23),  # half a step of float32 below 4
    (r"_a_layernorm\.weight$", frozenset({"dots3_note_text"}), 2**-23),  # times the root of hidden_size over the rank
    (r"(^|\.)A_log$", None, 2**-22),  # -exp(A_log)
    (r"weight$", frozenset({"falcon_h1"}), 2**-22),  # times multipliers, and divided by them
)
# expression of a tensor's name -> model types of which GGUF holds it less its mean, which chooses the same experts
CENTRED: Mapping[str, frozenset[str]] = {r"expert_bias$": frozenset({"sarvam_moe"})}


@dataclass(frozen=True)
class Allowance:
    """A key that crossdock writes otherwise than llama.cpp's converter, on purpose.

    architecture  of GGUF, or "" for all; key: without the architecture
    how           "more": only crossdock writes it; "less": only the converter does; "other" values
    value         of "less": what the converter writes, from its other keys
    """

    architecture: str
    key: str
    how: str
    why: str
    value: Callable[[Mapping[str, Any]], Any] | None = None


def _head_size(keys: Mapping[str, Any]) -> Any:
    """What llama.cpp assumes for the length of keys and values."""
    return keys["embedding_length"] // keys["attention.head_count"]


ALLOWANCES: Sequence[Allowance] = (
    Allowance("", "attention.key_length", "less", "the default, which crossdock leaves to llama.cpp", _head_size),
    Allowance("", "attention.value_length", "less", "the default, which crossdock leaves to llama.cpp", _head_size),
    Allowance("", "general.file_type", "more", "the converter leaves it out where a model class replaces the method"),
    Allowance("", "attention.key_length", "more", "the default, which the converter leaves to llama.cpp"),
    Allowance("", "attention.value_length", "more", "the default, which the converter leaves to llama.cpp"),
    Allowance("bloom", "context_length", "other", "the converter writes hidden_size where there is no seq_length"),
    Allowance("chatglm", "context_length", "other", "the converter writes hidden_size where there is no seq_length"),
    Allowance("deepseek2", "expert_gating_func", "more", "softmax, which llama.cpp assumes without the key"),
    Allowance("deepseek2", "expert_group_count", "less", "one group is none", lambda keys: 1),
    Allowance("deepseek2", "expert_group_used_count", "less", "one group is none", lambda keys: 1),
    Allowance(
        "hunyuan-moe",
        "expert_feed_forward_length",
        "other",
        "experts are as wide as feed_forward_length, which llama.cpp takes",
    ),
    Allowance(
        "ernie4_5-moe",
        "expert_shared_feed_forward_length",
        "other",
        "the converter divides another width by the number of KV heads",
    ),
    Allowance("falcon", "context_length", "other", "the converter always writes that of the 7B"),
)
IGNORED_KEYS = ("tokenizer.",)  # which tokenizer is written is another matter than the model


@dataclass(frozen=True)
class Subject:
    """A model with its references.

    folder  Hugging Face: config.json and model.safetensors
    tokens  int64 [1, n]; logits: float32 [1, n, vocabulary], by transformers
    gguf    what llama.cpp's converter wrote, or None
    tolerance  of llama.cpp's logits, absolute
    """

    name: str
    folder: Path
    model_type: str
    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    gguf: Recorded | None
    tolerance: float | None

    @functools.cached_property
    def state(self) -> dict[str, Values]:
        """Every stored tensor of the folder."""
        return stored(self.folder)


def stored(folder: Path) -> dict[str, Values]:
    """Every tensor of the safetensors files of a folder."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in read_safetensors(file).items()}


def export(source: Path, out: Path, to: str, **options: Any) -> Path:
    """What crossdock writes for `source`, every value as it is stored unless `options` say otherwise."""
    config = options.pop("config", None)
    delivery.run(delivery.plan(delivery.open(source, config=config), to, **options), out, memory=MEMORY, workers=1)
    return out


def returned(gguf: Path, out: Path, source: Path) -> Path:
    """GGUF -> HF, with the source's config.json only where GGUF does not hold all of the configuration."""
    return completed(gguf, out, "hf", source if source.parent.name in NEEDS_CONFIG else None, source)


def completed(gguf: Path, out: Path, to: str, config: Path | None, source: Path) -> Path:
    """GGUF -> `to`, with `config`; with the source's where that is refused: llama3's rope is but divisors in GGUF."""
    try:
        return export(gguf, out, to, config=config)
    except CrossdockError as error:
        if not any("rope of type llama3" in problem.what for problem in error.problems):
            raise
        return export(gguf, out, to, config=source)


def tensor_differences(path: Path, expected: Recorded, source: Mapping[str, Values] | None = None) -> list[str]:
    """Names, shapes, types and bytes of a GGUF's tensors against the converter's.

    source  the model's tensors: decays may then be a step of float32 away from what PyTorch's exp makes of them, whose
            last bit depends on the processor and the size of the tensor
    """
    got = {t.name: t for t in listed(path).tensors}
    wanted = {t.name: t for t in expected.tensors}
    out = [f"{name} is missing" for name in wanted if name not in got]
    out += [f"{name} is not one of the converter's" for name in got if name not in wanted]
    for name in got.keys() & wanted.keys():
        a, b = got[name], wanted[name]
        if (a.shape, a.type) != (b.shape, b.type):
            out.append(f"{name} is {a.type} {list(a.shape)}, expected {b.type} {list(b.shape)}")
        elif a.sha256 != b.sha256:
            if source and name.endswith(".ssm_a") and _as_torch(path, name, b.sha256, source):
                continue
            out.append(f"{name} has other bytes")
    return sorted(out)


def _as_torch(path: Path, name: str, sha256: str, source: Mapping[str, Values]) -> bool:
    """Whether the decays `name` are within a step of PyTorch's, which are the converter's bytes."""
    logarithms = [torch.tensor(value) for key, value in source.items() if key.endswith("A_log")]
    theirs = np.unique(np.concatenate([torch.exp(value).numpy().reshape(-1) for value in logarithms]))
    ours = np.frombuffer(read_gguf(path).tensors[name].raw, np.float32)
    above = np.clip(np.searchsorted(theirs, np.abs(ours)), 1, len(theirs) - 1)
    low, high = theirs[above - 1], theirs[above]
    nearest = np.copysign(np.where(np.abs(ours) - low < high - np.abs(ours), low, high), ours)
    steps = np.abs(nearest.view(np.int32) - ours.view(np.int32)).max()
    return bool(steps <= 1) and hashlib.sha256(nearest.tobytes()).hexdigest() == sha256


def key_differences(path: Path, expected: Recorded) -> list[str]:
    """Keys, their types and values against the converter's, but for `IGNORED_KEYS` and `ALLOWANCES`."""
    got, wanted = listed(path).keys, expected.keys
    architecture = str(wanted["general.architecture"][1])
    allowed = {
        (a.key if a.key.startswith("general.") else f"{architecture}.{a.key}", a.how): a
        for a in ALLOWANCES
        if a.architecture in ("", architecture)
    }
    plain = {name.removeprefix(f"{architecture}."): value for name, (_, value) in wanted.items()}
    out = []
    for name in sorted(got.keys() | wanted.keys()):
        a, b = got.get(name), wanted.get(name)
        how = "more" if b is None else "less" if a is None else "other"
        if name.startswith(IGNORED_KEYS) or (a and b and _same_value(a, b)):
            continue
        allowance = allowed.get((name, how))
        if allowance and (allowance.value is None or (b and b[1] == allowance.value(plain))):
            continue
        text = {
            "more": f"{name} = {a and a[1]!r}, which the converter does not write",
            "less": f"{name} is missing, expected {b and b[1]!r}",
            "other": f"{name} is {a and a[0]} {a and a[1]!r}, expected {b and b[0]} {b and b[1]!r}",
        }
        out.append(text[how][:200])
    return out


def _same_value(a: tuple[str, Any], b: tuple[str, Any]) -> bool:
    return a[0] == b[0] and (a[1] == b[1] or ("FLOAT32" in a[0] and np.array_equal(np.float32(a[1]), np.float32(b[1]))))


def forward_difference(source: Path, subject: Subject) -> float:
    """The reference forward's largest distance from transformers' logits, as a share of the largest logit."""
    checkpoint = delivery.open(source)
    with CheckpointWeights(checkpoint, MEMORY) as weights:
        rows = [forward(checkpoint.config, weights, row.tolist()) for row in subject.tokens]
    return distance(np.stack(rows), subject.logits)


def distance(got: Values, expected: Values) -> float:
    """The largest difference as a share of the largest expected value; inf for other shapes and what is not finite."""
    if got.shape != expected.shape:
        return float("inf")
    found = float(np.abs(got - expected).max() / np.abs(expected).max())
    return found if np.isfinite(found) else float("inf")


def state_differences(
    got: Mapping[str, Values], expected: Mapping[str, Values], mapped_type: str | None = None
) -> list[str]:
    """Names, dtypes, shapes and bytes; the mapped values of the model type `mapped_type` within `MAPPED`."""
    out = [f"{name} is missing" for name in expected if name not in got]
    out += [f"{name} is not one of the source's" for name in got if name not in expected]
    for name in got.keys() & expected.keys():
        a, b = got[name], expected[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            out.append(f"{name} is {a.dtype} {a.shape}, expected {b.dtype} {b.shape}")
        elif a.tobytes() != b.tobytes():
            bounds = [
                bound
                for part, types, bound in MAPPED
                if mapped_type is not None and (types is None or mapped_type in types) and re.search(part, name)
            ]
            if any(mapped_type in types and re.search(part, name) for part, types in CENTRED.items()):
                b = b - torch.tensor(b).mean().numpy()
            apart = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
            if not apart <= max(bounds, default=0.0):
                out.append(f"{name} has other values, {apart:.1e} apart, {max(bounds, default=0.0):.1e} allowed")
    return sorted(out)


def text_part(state: Mapping[str, Values]) -> dict[str, Values]:
    """The text model of a composite under the names that it has alone; of any other model everything."""
    if not any("language_model." in name for name in state):
        return dict(state)
    text = {name: value for name, value in state.items() if not any(part in name for part in TOWERS)}
    renamed = {re.sub(r"^(model\.language_model|language_model\.model)\.", "model.", name): name for name in text}
    return {new.removeprefix("language_model."): text[name] for new, name in renamed.items()}


def short(problems: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def folders(root: Path) -> Iterator[Path]:
    """The cases of a folder of references: sub-folders with case.json."""
    yield from sorted(file.parent for file in root.glob("*/case.json"))


def refusal(folder: Path) -> str:
    """The first sentence of the error with which crossdock refuses a model for its family; "" for one that it knows."""
    try:
        delivery.open(folder)
    except ConfigError as error:
        return error.problems[0].what
    except CrossdockError:
        return ""  # it knows the family: what else is wrong shows in the checks
    return ""


def llama_difference(path: Path, subject: Subject) -> float:
    """The largest absolute distance of llama.cpp's logits from transformers'; inf where they choose another token."""
    got = llama_logits(path, subject.tokens)[..., : subject.logits.shape[-1]]
    if not np.array_equal(got.argmax(-1), subject.logits.argmax(-1)):
        return float("inf")
    return float(np.abs(got - subject.logits).max())


def unpacked_gguf(source: Path, out: Path) -> Path:
    """The same GGUF with blocks as F32: llama.cpp rounds the activations that meet packed matrices."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, arch=reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = entry.types[1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    for tensor in reader.tensors:
        plain = tensor.tensor_type.name in ("F32", "I32")
        data = tensor.data if plain else gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def transformers_difference(folder: Path, subject: Subject) -> float:
    """The largest distance of transformers' logits of `folder` from those of the source, as a share of the largest."""
    return distance(transformers_logits(without_nextn(folder), subject.tokens), subject.logits)


def without_nextn(folder: Path) -> Path:
    """The model without layers for multi-token prediction, of which transformers keeps only published numbers aside."""
    config, state = json.loads((folder / "config.json").read_text()), stored(folder)
    beyond = re.compile(r"model\.layers\.(\d+)\.")
    kept = {k: v for k, v in state.items() if not (at := beyond.match(k)) or int(at[1]) < config["num_hidden_layers"]}
    return folder if len(kept) == len(state) else write_folder(folder / "without-nextn", config, kept)
