"""What people type who come from other tools, in crossdock's words. Nothing of a model is guessed.

Options of `convert_hf_to_gguf.py` (`--outfile`, `--outtype`), engines in place of the format that they load,
and commands that other programs have for the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from crossdock.wording import nearest

COMMANDS: Mapping[str, str] = MappingProxyType(
    {"convert": "export", "quantize": "export", "info": "inspect", "show": "inspect", "list": "families"}
)
# an engine -> the format that it loads
ENGINES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("vllm", "sglang", "transformers", "safetensors", "huggingface", "hugging-face"), "hf")
    | dict.fromkeys(("ollama", "llama.cpp", "llamacpp", "llama-cpp", "lmstudio", "lm-studio"), "gguf")
    | dict.fromkeys(("tensorrt-llm", "tensorrtllm", "tensorrt"), "trtllm")
)
_WRITING: Final = ("export", "plan")
_OPTIONS: Mapping[str, str] = MappingProxyType(dict.fromkeys(("--outfile", "--out", "--output-file"), "--output"))
_TYPE: Final = "--outtype"
_DTYPES: Final = ("auto", "f32", "fp32", "float32", "f16", "fp16", "float16", "half", "bf16", "bfloat16")
_UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "--imatrix": "importance matrices are not supported",
        "--split-max-size": "GGUF files are written whole; split them with llama-gguf-split",
        "--split-max-tensors": "GGUF files are written whole; split them with llama-gguf-split",
        "--mmproj": "vision towers are not exported",
        "--remote": "models are not downloaded: hf download ORG/NAME --local-dir FOLDER",
    }
)


def rewritten(arguments: Sequence[str]) -> list[str]:
    """The arguments of the process in crossdock's own words."""
    out = list(arguments)
    if out and out[0] == "help":
        return [*out[1:2], "--help"]
    if out:
        out[0] = COMMANDS.get(out[0], out[0])
    if out and out[0] in _WRITING:
        out = [word for place in range(len(out)) for word in _option(out, place)]
        output = _value(out, ("-o", "--output"))
        if _value(out, ("--to",)) is None and output is not None and output.endswith(".gguf"):
            out[1:1] = ["--to", "gguf"]
    return out


def _option(words: Sequence[str], place: int) -> Sequence[str]:
    """The words that stand for the one at `place`."""
    name, equals, value = words[place].partition("=")
    if name in _OPTIONS:
        return (f"{_OPTIONS[name]}{equals}{value}",)
    if name == _TYPE and (equals or place + 1 < len(words)):
        kind = value if equals else words[place + 1]
        return (f"{'--dtype' if kind.lower() in _DTYPES else '--quantize'}{equals}{value}",)
    return (words[place],)


def _value(words: Sequence[str], names: Sequence[str]) -> str | None:
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(words[place + 1 : place + 2]), None)
    return None


def no_such_option(name: str, known: Sequence[str]) -> str:
    """What to say of an option that does not exist: why, or what is very like it."""
    if name in _UNSUPPORTED:
        return f"no option {name}: {_UNSUPPORTED[name]}"
    near = nearest(name, known, 1, 0.75)
    return f"no option {name}" + (f"; did you mean {near[0]}?" if near else "")
