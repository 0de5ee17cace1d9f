"""Options that targets share. A target's own are fields of its own dataclass, beside it.

Nothing heavy is imported here or by modules of options: the command line reads them all before it knows the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossdock.options import flag, option, path, text


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be asked of every target.

    dtype     of large tensors: "auto" (as stored), or a name or alias of a codec ("bf16")
    quantize  the type of matrices, or a scheme that the target knows by name; None: not quantised
    """

    dtype: str = option("auto", text, "auto (as stored), float32, bfloat16, float16.", "NAME")
    quantize: str | None = option(
        None, text, "Type of matrices; see the list below.{quantizations}", "NAME", also=("-q",)
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(Options):
    """Of targets that take a tokenizer along.

    tokenizer  folder or file of the tokenizer; None: the one beside the source
    """

    tokenizer: Path | None = option(
        None,
        path,
        "Tokenizer.  [default: beside the source]",
        "PATH",
        replayed=True,
    )


@dataclass(frozen=True, kw_only=True)
class NextnOptions(Options):
    """Of targets that hold layers for multi-token prediction.

    no_mtp  these layers are left out
    """

    no_mtp: bool = option(False, flag, "Leave out layers for multi-token prediction.", replayed=True)


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Options):
    """Of targets whose engines may keep keys and values in fp8.

    fp8_kv_cache  the engine keeps keys and values in fp8
    """

    fp8_kv_cache: bool = option(False, flag, "Keep keys and values in fp8.")
