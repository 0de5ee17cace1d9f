"""Records the references of the cases again, offline, for the maintainer: the tests only read them.

    export PYTHONPATH=tests
    python tests/families/record_cases.py --converter LLAMA_CPP [--from FAMILIES --recipes EXTRA.json] [CASE ...]
    python tests/families/record_cases.py --converter LLAMA_CPP --like CASE --set '{"hidden_size": 64}' NEW_CASE

LLAMA_CPP is a checkout of llama.cpp with its converter (convert_hf_to_gguf.py, conversion/, gguf-py/), here the one
that the source distribution of llama-cpp-python 0.3.36 vendors (llama.cpp 0c1e57098):

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36    # vendor/llama.cpp in the archive

Besides it takes torch, transformers and xllamacpp; torch 2.13.0, transformers 5.24.0 and xllamacpp 2026.10.11549 made
what is kept. Without --from, cases that exist are recorded again from their own config, tensors and recipe. With it, a
case starts from FAMILIES/CASE (hf/config.json, hf/model.safetensors, case.json): config, names, shapes and dtypes are
taken over, and of the values only their kind. EXTRA.json says how that folder was made ({"cases": {CASE: {...}}}).
With --like, a new case has the config of another one but for some keys, and the tensors that transformers saves for it.

For each: weights from the seed, transformers' logits, the converter's keys and tensors, llama.cpp's logits of the
converter's file. Kept only if those agree within the recipe's tolerance and choose the same tokens; else the next seed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import pkgutil
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import family_cases
import numpy as np
from family_cases import Case, Recipe, write_folder
from family_checks import unpacked_gguf
from made_weights import DTYPES, Stored, Values, read_safetensors

from oracles.llama_engine import llama_logits

SEEDS = 6
OUTTYPES = ("f16", "bf16", "q8_0")
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def imported(name: str, families: Path, extra: Mapping[str, Any]) -> Case:
    """A case without references, from a folder of another set of references."""
    config = json.loads((families / name / "hf/config.json").read_text())
    about = json.loads((families / name / "case.json").read_text())
    spec = extra["cases"].get(name, {})
    recipe = Recipe(
        auto=spec.get("auto", "AutoModelForCausalLM"),
        raw=spec.get("raw", False),
        no_mtp=spec.get("no_mtp", False),
        vocab_file=spec.get("vocab_file", False),
        without=spec.get("verify_zero", ""),
        tolerance=None if "hf_only" in spec else about["tolerance"],
        why=spec.get("hf_only", ""),
    )
    state = read_safetensors(families / name / "hf/model.safetensors")
    no = np.zeros((0,))
    return Case(name, config, tuple(kinds(state, config)), recipe, no, no, None, {}, None)


def varied(base: Case, name: str, changes: Mapping[str, Any]) -> Case:
    """A case without references: `base` with other values in config.json. KeyError for a tensor that `base` has not."""
    import transformers

    config = {**base.config, **changes}
    if "text_config" in changes:
        config["text_config"] = {**base.config["text_config"], **changes["text_config"]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model = getattr(transformers, base.recipe.auto).from_config(transformers.AutoConfig.from_pretrained(folder))
        model.float().save_pretrained(Path(folder) / "out")
        state = read_safetensors(Path(folder) / "out/model.safetensors")
    kind_of = {re.sub(r"\d+", "N", tensor.name): tensor for tensor in base.tensors}
    tensors = []
    for tensor, array in state.items():
        like = kind_of[re.sub(r"\d+", "N", tensor)]
        if like.dtype != "F32":
            raise KeyError(f"{tensor} is {like.dtype}, which transformers does not save")
        tensors.append(Stored(tensor, like.dtype, array.shape, like.kind))
    no = np.zeros((0,))
    return Case(name, config, tuple(tensors), base.recipe, no, no, None, {}, None)


def kinds(state: Mapping[str, Values], config: Mapping[str, Any]) -> Iterator[Stored]:
    """Every tensor with the kind of its values, seen in all layers and experts together."""
    alike: dict[str, list[Values]] = {}
    for name, array in state.items():
        alike.setdefault(re.sub(r"\d+", "N", name), []).append(array.reshape(-1))
    dtype_names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    for name, array in state.items():
        dtype = dtype_names[array.dtype]
        kind = _kind(name, dtype, array, np.concatenate(alike[re.sub(r"\d+", "N", name)]), config)
        constant = tuple(int(x) for x in array.reshape(-1)) if kind == "constant" else ()
        yield Stored(name, dtype, array.shape, kind, constant)


def _kind(name: str, dtype: str, array: Values, pooled: Values, config: Mapping[str, Any]) -> str:
    if dtype == "I64":
        return f"choice of {config['n_routed_experts']}" if name.endswith("tid2eid") else "constant"
    if dtype != "F32":
        return "exponents" if dtype == "F8_E8M0" or name.endswith("_scales") else "bytes"
    if "A_log" in name:
        return "decay"
    if array.ndim >= 2 and not ("norm" in ".".join(name.split(".")[-2:]) and array.ndim == 2):
        return "sign" if len(np.unique(np.abs(array))) == 1 else "matrix"
    mean = float(pooled.mean())
    if "layer_scalar" in name or (pooled.min() >= 0.6 and pooled.max() <= 1 and "scale" in name):
        return "scale"
    return "around zero" if abs(mean) < 0.15 else "around a quarter" if abs(mean) < 0.4 else "around one"


def record(case: Case, folder: Path) -> Case:
    """The case with its references. AssertionError where the two programs disagree."""
    import torch
    import transformers

    source = case.write(folder / "hf")
    vocabulary = case.config.get("text_config", case.config).get("vocab_size", 160)
    tokens = np.random.default_rng(case.recipe.seed).integers(4, min(160, vocabulary), (1, 24)).astype(np.int64)
    packed = unpacked(case)
    computed = write_folder(folder / "unpacked", _unquantised(case.config), packed) if packed else source
    logits = _transformers(computed, tokens, case.recipe.auto)
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "xllamacpp": importlib.metadata.version("xllamacpp"),
        "converter": "llama.cpp 0c1e57098 (llama-cpp-python 0.3.36)",
    }
    made = replace(case, tokens=tokens, logits=logits, versions=versions)
    if case.recipe.tolerance is None:
        return made
    _convert(source, folder / "m.gguf", case.recipe, "f32")
    listing = family_cases.listed(folder / "m.gguf")
    encoded = {}
    for outtype in OUTTYPES:
        _convert(source, folder / f"{outtype}.gguf", case.recipe, outtype)
        tensors = family_cases.listed(folder / f"{outtype}.gguf").tensors
        encoded[outtype] = {tensor.name: (tensor.type, tensor.sha256[:8]) for tensor in tensors}
    listing = replace(listing, encoded=encoded)
    reference, run = logits, folder / "m.gguf"
    if packed:
        run = unpacked_gguf(run, folder / "u.gguf")
    if case.recipe.without:
        state = {k: v * 0 if re.search(case.recipe.without, k) else v for k, v in case.state().items()}
        reduced = write_folder(folder / "reduced", case.config, state)
        reference = _transformers(reduced, tokens, case.recipe.auto)
        run = folder / "reduced.gguf"
        _convert(reduced, run, case.recipe, "f32")
    got = llama_logits(run, tokens)[..., : logits.shape[-1]]
    difference = float(np.abs(got - reference).max())
    assert difference <= case.recipe.tolerance, f"llama.cpp is {difference:.2e} off"
    assert np.array_equal(got.argmax(-1), reference.argmax(-1)), f"other tokens, {difference:.2e} off"
    return replace(made, gguf=listing, difference=difference)


def unpacked(case: Case) -> dict[str, Values]:
    """The float32 tensors, under transformers' names, of a case that stores MXFP4; empty for all others."""
    state = case.state()
    if not any(tensor.dtype in ("U8", "I8") for tensor in case.tensors):
        return {}
    out: dict[str, Values] = {}
    for name, array in state.items():
        if name.endswith("_blocks"):  # gpt-oss: [expert, row, block, 16] beside _scales; transformers holds [in, out]
            codes = np.stack([array & 15, array >> 4], -1).reshape(*array.shape[:-1], 32)
            scales = np.exp2(state[name[:-7] + "_scales"].astype(np.float32) - 127)
            dense = (FP4[codes] * scales[..., None]).reshape(*array.shape[:2], -1)
            out[name[:-7]] = np.ascontiguousarray(dense.swapaxes(1, 2))
        elif array.dtype == np.int8:  # DeepSeek-V4: [row, columns / 2] beside .scale [row, columns / 32]
            both = array.view(np.uint8)
            codes = np.stack([both & 15, both >> 4], -1).reshape(array.shape[0], -1, 32)
            scales = np.exp2(state[name[:-6] + "scale"].view(np.uint8).astype(np.float32) - 127)
            out[_deepseek_v4(name)] = (FP4[codes] * scales[..., None]).reshape(array.shape[0], -1)
        elif array.dtype == np.float32 or array.dtype == np.int64:
            out[_deepseek_v4(name) if case.model_type == "deepseek_v4" else name] = array
    return out


def _deepseek_v4(name: str) -> str:
    """The name under which transformers 5.24 saves a tensor of a released DeepSeek-V4."""
    if name == "embed.weight":
        return "model.embed_tokens.weight"
    if name.startswith("hc_head_"):
        return "model.hc_head.hc_" + name.removeprefix("hc_head_")
    name = name.replace(".attn.kv_norm.", ".attn.norm.")
    return name if name == "head.weight" else "model." + name


def _unquantised(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _transformers(folder: Path, tokens: Values, auto: str) -> Values:
    import torch
    import transformers

    model, loading = getattr(transformers, auto).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    missing = {what: sorted(map(str, names)) for what, names in loading.items() if names and what != "unexpected_keys"}
    assert not missing, f"transformers: {str(missing)[:300]}"
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens), use_cache=False).logits
    return np.asarray(logits.float().numpy(), np.float32)


def _convert(source: Path, out: Path, recipe: Recipe, outtype: str) -> None:
    """llama.cpp's converter, without tokenizer. It patches classes: in a process of its own."""
    import gguf
    import transformers
    from conversion import base

    if recipe.raw:  # the converter's own way when AutoConfig fails

        def refuse(*_: Any, **__: Any) -> Any:
            raise ValueError("config.json as it is")

        transformers.AutoConfig.from_pretrained = refuse
    if recipe.vocab_file:
        vocabulary = {"model": {"vocab": {f"t{i}": i for i in range(160)}}, "added_tokens": []}
        (source / "tokenizer.json").write_text(json.dumps(vocabulary))
    kind = base.ModelType.TEXT
    architecture = base.get_model_architecture(base.ModelBase.load_hparams(source, False), kind)
    model_class = base.ModelBase.from_model_architecture(architecture, model_type=kind)
    if recipe.no_mtp:
        model_class.no_mtp = True
    file_type = gguf.LlamaFileType.ALL_F32 if outtype == "f32" else gguf.LlamaFileType[f"MOSTLY_{outtype.upper()}"]
    model_class(source, file_type, out, eager=False, model_name="tiny").write()


def _load_converters(converter: Path) -> None:
    sys.path[:0] = [str(converter / "gguf-py"), str(converter)]
    import conversion
    from conversion import base

    for module in pkgutil.iter_modules(conversion.__path__):
        importlib.import_module(f"conversion.{module.name}")

    def no_vocabulary(self: Any) -> None:
        self.gguf_writer.add_tokenizer_model("none")
        size = self.hparams.get("vocab_size") or (self.hparams.get("text_config") or {}).get("vocab_size")
        if not any(f"{self.gguf_writer.arch}.vocab_size" in keys for keys in self.gguf_writer.kv_data):
            self.gguf_writer.add_vocab_size(size)

    waiting = [base.TextModel]
    while waiting:
        model_class = waiting.pop()
        waiting += model_class.__subclasses__()
        if "set_vocab" in vars(model_class):
            model_class.set_vocab = no_vocabulary


def attempt(case: Case) -> None:
    """Records one case and keeps it; in a process of its own, whose exit code says whether it did."""
    folder = Path(tempfile.mkdtemp(prefix="case_"))
    log = (folder / "log").open("w")
    os.dup2(log.fileno(), 2)
    try:
        made = record(case, folder)
    except BaseException as error:
        print(f"{case.name:24} seed {case.recipe.seed}: {type(error).__name__} {str(error)[:300]!r}", flush=True)
        traceback.print_exc()
        os._exit(1)
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(folder)
    family_cases.save(made)
    size = (family_cases.FOLDER / f"{case.name}.tar.xz").stat().st_size
    print(
        f"{case.name:24} seed {case.recipe.seed}: {made.difference} of {np.abs(made.logits).max():.3f}, {size} B",
        flush=True,
    )
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--from", dest="families", type=Path)
    parser.add_argument("--recipes", type=Path)
    parser.add_argument("--like")
    parser.add_argument("--set", type=json.loads, default={})
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    start: Callable[[str], Case]
    if options.like:
        names, start = options.names, lambda name: varied(family_cases.case(options.like), name, options.set)
    elif options.families:
        extra = json.loads(options.recipes.read_text())
        names = options.names or sorted(folder.parent.name for folder in options.families.glob("*/case.json"))
        start = functools.partial(imported, families=options.families, extra=extra)
    else:
        names, start = options.names or family_cases.names(), family_cases.case
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    _load_converters(options.converter)
    forked = multiprocessing.get_context("fork")
    failed = []
    for name in names:
        try:
            case = start(name)
        except Exception as error:
            print(f"{name:24} {type(error).__name__} {str(error)[:300]!r}", flush=True)
            failed.append(name)
            continue
        for seed in range(case.recipe.seed, case.recipe.seed + SEEDS):
            child = forked.Process(target=attempt, args=(replace(case, recipe=replace(case.recipe, seed=seed)),))
            child.start()
            child.join(300)
            if child.is_alive():
                child.kill()
            if child.exitcode == 0:
                break
        else:
            failed.append(name)
    print(f"{len(names) - len(failed)} recorded; not: {' '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
