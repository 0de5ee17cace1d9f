"""Activation statistics of a Hugging Face model on a CPU: how often each FFN neuron is active over a text.

One layer is in memory at a time: its weights are read, all windows of the text go through it, what comes out is kept
on the disk as the next layer's input. A run that was stopped goes on after its last whole layer. Needs the extra
`activations` (torch, transformers); code that comes with a model is never run, and its weights, also pickled ones, are
read by crossdock's own readers. Bamboo is a Mistral whose gate and up projections both pass through ReLU (PowerInfer at
d3ebd7c, llama.cpp: LLM_ARCH_BAMBOO); FATReLU keeps what is above its threshold (vLLM, csrc/activation_kernels.cu).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.errors import ConfigError, EnvironmentProblem, NotACheckpointError, PlanError, UsageError
from crossdock.formats.hf.source import open_source, read_json
from crossdock.io.files import read_exact, reading

STATE: Final = "state.json"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Ffn:
    """Where a family's layers are, and the linear maps whose outputs say that a neuron is active (all are above)."""

    layers: str
    maps: tuple[str, ...]
    activation: str  # the config's key for the activation function
    above: float = 0.0  # what an output must exceed


LLAMA: Final = Ffn("layers", ("mlp.gate_proj",), "hidden_act")
FAMILIES: Final = (
    ("opt", Ffn("decoder.layers", ("fc1",), "activation_function")),
    ("falcon", Ffn("h", ("mlp.dense_h_to_4h",), "activation")),
    ("llama", LLAMA),
    ("mistral", LLAMA),
)
BAMBOO: Final = "bamboo"


@dataclass(frozen=True, slots=True)
class Collected:
    """What was counted: int64 counts are in the files `activation_{layer}.pt` of `folder`."""

    folder: Path
    layers: int
    width: int
    tokens: int
    resumed_at: int


def collect(
    model: Path, text: str, out: Path, *, window: int = 512, drelu: bool = False, progress: Progress | None = None
) -> Collected:
    """Count over `text` in windows of `window` tokens; what does not fill a last window is left out.

    drelu  the model's gate and up projections both pass through ReLU (Bamboo, TurboSparse), whatever its config says
    Raises ConfigError (not a ReLU model that this knows), PlanError (tensors missing), UsageError (no text, `out` is
    there), EnvironmentProblem (the extra is not installed).
    """
    torch, transformers = _imports()
    if out.exists():
        raise UsageError("the output exists", where=str(out), fix="choose another --output")
    if not (model / "config.json").is_file():
        raise NotACheckpointError("not a Hugging Face folder: config.json is missing", where=str(model))
    raw, _ = read_json(model)
    drelu = drelu or raw.get("model_type") == BAMBOO
    try:
        if raw.get("model_type") == BAMBOO:
            keys = {key: value for key, value in raw.items() if key != "model_type"}
            config = transformers.AutoConfig.for_model("mistral", **keys)
        else:
            config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, config=config, trust_remote_code=False)
        ids = tokenizer(text)["input_ids"]
    except (ValueError, OSError, KeyError) as error:
        line = str(error).strip().split("\n")[0]
        raise ConfigError(f"transformers cannot read this model: {line}", where=str(model)) from error
    ffn = _ffn(config, model, drelu)
    window = min(window, len(ids))
    if not window:
        raise UsageError("the text has no tokens")
    tokens = np.asarray(ids[: len(ids) // window * window], np.int64).reshape(-1, window)
    with torch.device("meta"):
        empty = transformers.AutoModel.from_config(config)
    empty.eval()
    empty.config.use_cache = False
    weights = _Weights(torch, model, empty.base_model_prefix)
    partial = out.with_name(out.name + ".partial")
    state = {"model": str(model.resolve()), "tokens": hashlib.sha256(tokens.tobytes()).hexdigest(), "window": window}
    state["drelu"] = drelu
    first = _resume(partial, state)
    layers = empty.get_submodule(ffn.layers)
    with torch.no_grad():
        hidden, layer_arguments = _embedded(torch, empty, layers, weights, tokens, partial, first, config)
        for number in range(first, len(layers)):
            counts = _through(
                torch, layers[number], f"{ffn.layers}.{number}", ffn, weights, hidden, layer_arguments, partial
            )
            _save(torch, partial, number, counts, state)
            hidden = np.load(partial / f"hidden-{number + 1}.npy", mmap_mode="r")
            width = len(counts)
            if progress:
                progress(number + 1, len(layers), f"layer {number}")
    for entry in (STATE, f"hidden-{len(layers)}.npy"):
        (partial / entry).unlink(missing_ok=True)
    os.rename(partial, out)
    return Collected(out, len(layers), width, tokens.size, first)


def _imports() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise EnvironmentProblem(
            f"counting activations needs {error.name}", fix="pip install 'crossdock[activations]'"
        ) from error
    return torch, transformers


def _ffn(config: Any, model: Path, drelu: bool) -> Ffn:
    """What to look at. The config's activation becomes ReLU, which changes nothing of what is above the threshold."""
    found = dict(FAMILIES).get(config.model_type)
    if found is None or (drelu and found is not LLAMA):
        raise ConfigError(
            "activations are not counted for this kind of model",
            where=str(model),
            expected=", ".join((*(name for name, _ in FAMILIES), BAMBOO)),
            got=config.model_type,
        )
    activation = getattr(config, found.activation, None)
    above: Any = 0.0
    if activation == "fatrelu":
        above = getattr(config, "hidden_act_param", None)
        if not isinstance(above, float | int) or isinstance(above, bool) or not 0 <= above < float("inf"):
            raise ConfigError("the threshold of FATReLU", where=f"{model}: hidden_act_param", got=repr(above)[:80])
    elif activation != "relu" and not drelu:
        raise ConfigError(
            "PowerInfer needs a ReLU model: other activations never switch neurons off",
            where=str(model),
            expected=f"{found.activation} relu",
            got=str(activation),
        )
    setattr(config, found.activation, "relu")
    return replace(found, maps=("mlp.gate_proj", "mlp.up_proj") if drelu else found.maps, above=float(above))


class _Weights:
    """The tensors of a folder by name, read when asked for."""

    def __init__(self, torch: Any, folder: Path, prefix: str) -> None:
        self._torch, self._prefix, self._source = torch, prefix, open_source(folder)

    def read(self, name: str) -> Any:
        """float32. Checkpoints of a whole language model have the base model's names under its prefix."""
        tensors = self._source.tensors
        tensor = tensors.get(("", name)) or tensors.get(("", f"{self._prefix}.{name}"))
        if tensor is None:
            raise PlanError("a tensor of the model is missing", where=str(self._source.root), expected=name)
        if tensor.scaling is not None or codecs.get(tensor.dtype).block != 1:
            raise PlanError("activations are counted on plain weights", where=tensor.name, got=tensor.dtype)
        (extent,) = tensor.extents
        with reading(path := self._source.files[extent.file].path) as fd:
            data = read_exact(fd, extent.offset, extent.nbytes, str(path))
        codec = codecs.get(tensor.dtype)
        values = np.empty(extent.nbytes // codec.block_bytes, np.float32)
        codec.decode(np.frombuffer(data, np.uint8), values)
        whole = self._torch.from_numpy(values)
        if extent.strides is not None:
            return whole.as_strided(tensor.shape, extent.strides).contiguous()
        return whole.reshape(tensor.shape)

    def fill(self, module: Any, prefix: str) -> None:
        """Give a module on no device its weights. Raises PlanError when one is missing or of another shape."""
        for name, parameter in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            values = self.read(f"{prefix}{name}")
            if values.shape != parameter.shape:
                raise PlanError(
                    "a tensor does not have the model's shape",
                    where=f"{prefix}{name}",
                    expected=str(list(parameter.shape)),
                    got=str(list(values.shape)),
                )
            setattr(module.get_submodule(owner), leaf, self._torch.nn.Parameter(values, requires_grad=False))


class _First(Exception):
    """Not an error: what the model hands to its first layer."""

    def __init__(self, hidden: Any, layer_arguments: Mapping[str, Any]) -> None:
        self.hidden, self.layer_arguments = hidden, layer_arguments


def _embedded(
    torch: Any, model: Any, layers: Any, weights: _Weights, tokens: Any, partial: Path, first: int, config: Any
) -> tuple[Any, Mapping[str, Any]]:
    """The input of layer `first` for all windows, and what else layers are given: all windows have one length."""
    for name, module in model.named_modules():
        if "inv_freq" in dict(module.named_buffers(recurse=False)):  # computed, not stored
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, type(module)(config))
    for name, module in model.named_children():
        _fill_outside(module, name, layers, weights)

    def stop(module: Any, args: Any, kwargs: Any) -> None:
        layer_arguments = dict(kwargs)
        hidden = args[0] if args else layer_arguments.pop("hidden_states")
        raise _First(hidden, layer_arguments)

    hook = layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    layer_arguments: Mapping[str, Any] = {}
    store = None
    for number, row in enumerate(tokens if first == 0 else tokens[:1]):
        try:
            model(input_ids=torch.from_numpy(row)[None], use_cache=False)
        except _First as found:
            layer_arguments = found.layer_arguments
            if first == 0:
                if store is None:
                    shape = (len(tokens), *found.hidden.shape[1:])
                    store = np.lib.format.open_memmap(partial / "hidden-0.npy", "w+", np.float32, shape)
                store[number] = found.hidden[0].numpy()
    hook.remove()
    if store is not None:
        store.flush()
    return np.load(partial / f"hidden-{first}.npy", mmap_mode="r"), layer_arguments


def _fill_outside(module: Any, name: str, layers: Any, weights: _Weights) -> None:
    """Weights of everything but the layers: embeddings, norms."""
    if module is layers:
        return
    children = list(module.named_children())
    if any(inside is layers for inside in module.modules()):
        for leaf, child in children:
            _fill_outside(child, f"{name}.{leaf}", layers, weights)
    else:
        weights.fill(module, f"{name}.")


@contextmanager
def _counting(layer: Any, ffn: Ffn) -> Iterator[list[Any]]:
    """Masks of what is above the threshold in the maps' outputs, in a list that the caller empties. The rest is 0."""
    seen: list[Any] = []

    def look(module: Any, args: Any, output: Any) -> Any:
        active = output > ffn.above
        seen.append(active.reshape(-1, output.shape[-1]))
        return output.masked_fill(~active, 0)

    hooks = [layer.get_submodule(name).register_forward_hook(look) for name in ffn.maps]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _through(
    torch: Any,
    layer: Any,
    name: str,
    ffn: Ffn,
    weights: _Weights,
    hidden: Any,
    layer_arguments: Mapping[str, Any],
    partial: Path,
) -> Any:
    """Send all windows through a layer; its counts. The layer's weights are given up at the end."""
    weights.fill(layer, f"{name}.")
    after = np.lib.format.open_memmap(partial / f"{name.rpartition('.')[2]}.next", "w+", np.float32, hidden.shape)
    counts: Any = 0
    with _counting(layer, ffn) as seen:
        for number in range(len(hidden)):
            result = layer(torch.from_numpy(hidden[number].copy())[None], **layer_arguments)
            after[number] = (result[0] if isinstance(result, tuple) else result).reshape(hidden.shape[1:]).numpy()
            active = seen[0]
            for other in seen[1:]:
                active = active & other
            counts = counts + active.sum(dim=0, dtype=torch.int64)
            seen.clear()
    after.flush()
    layer.to("meta")
    return counts


def _resume(partial: Path, state: Mapping[str, Any]) -> int:
    """The layer to begin with. Raises UsageError when the unfinished run was of something else."""
    file = partial / STATE
    if file.is_file():
        try:
            known = json.loads(file.read_text())
            first = known.pop("next")
        except (ValueError, KeyError, AttributeError):
            known, first = {}, 0
        if known != dict(state):
            raise UsageError(
                "the unfinished run here belongs to another model or text", where=str(partial), fix="remove that folder"
            )
        return int(first)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return 0


def _save(torch: Any, partial: Path, number: int, counts: Any, state: Mapping[str, Any]) -> None:
    """A whole layer is done: its counts, the next layer's input, then the note that says so."""
    torch.save(counts, partial / "counts.new")
    os.replace(partial / "counts.new", partial / f"activation_{number}.pt")
    os.replace(partial / f"{number}.next", partial / f"hidden-{number + 1}.npy")
    (partial / "state.new").write_text(json.dumps({**state, "next": number + 1}))
    os.replace(partial / "state.new", partial / STATE)
    (partial / f"hidden-{number}.npy").unlink(missing_ok=True)
