"""The options that commands share, and their values: sizes, dtypes, KEY=VALUE.

What only the library can know (is there such a file, does that dtype fit the target) is left to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from crossdock import Checkpoint
    from crossdock.planning.plan import Plan

Function = TypeVar("Function", bound=Callable[..., Any])

UNITS: Mapping[str, int] = MappingProxyType(
    {"": 1} | {p: 1000**n for n, p in enumerate("kmgt", 1)} | {f"{p}i": 1024**n for n, p in enumerate("kmgt", 1)}
)
SIZE = re.compile(r"(\d+(?:\.\d+)?) *((?:[kmgt]i?)?)b?", re.IGNORECASE | re.ASCII)
LARGEST = 1 << 60
PATH = click.Path(path_type=Path)


class Size(click.ParamType):
    """Bytes: "5GB" is 5 * 10**9, "256MiB" is 256 * 2**20."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = SIZE.fullmatch(value.strip())
        size = int(float(match[1]) * UNITS[match[2].lower()]) if match and len(value) < 40 else 0
        if not 0 < size <= LARGEST:
            self.fail(f"{value!r} is not a size; write it like 5GB, 500MB or 2GiB", param, ctx)
        return size


class Dtype(click.ParamType):
    """A dtype or quantisation under any of its usual names, as its canonical name; `also` is kept as it is."""

    name = "dtype"

    def __init__(self, *also: str) -> None:
        self.also = also

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.also:
            return str(value)
        from crossdock.codecs.registry import canonical_name

        try:
            return canonical_name(value)
        except UsageError as error:
            problem = error.problems[0]
            self.fail(f"{problem.what}, expected {problem.expected}", param, ctx)


class Format(click.ParamType):
    """The name of a format that is read, or with `written=True` of one that is written."""

    name = "format"

    def __init__(self, *, written: bool = False) -> None:
        self.written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from crossdock.formats import registry

        known = registry.targets() if self.written else registry.names()
        name = str(value).lower()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
            self.fail(f"crossdock {'writes' if self.written else 'reads'} no format {value!r}; {hint}", param, ctx)
        return name


@dataclass(frozen=True, slots=True)
class SourceFlags:
    """How the user wants the source to be read."""

    format: str | None
    iteration: int | None
    family: str | None
    config: Path | None
    set: Mapping[str, str]

    def open(self, path: Path) -> Checkpoint:
        """Open the checkpoint at `path`: headers only."""
        import crossdock

        return crossdock.open(
            path,
            format=self.format,
            iteration=self.iteration,
            family=self.family,
            config=self.config,
            set=self.set,
        )


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """What the user wants to be written."""

    to: str
    dtype: str
    quantize: str | None
    tokenizer: Path | None
    pre_tokenizer: str | None
    max_shard_size: int

    def plan(self, checkpoint: Checkpoint) -> Plan:
        """Plan the conversion: no tensor data is read."""
        import crossdock

        return crossdock.plan(
            checkpoint,
            self.to,
            dtype=self.dtype,
            quantize=self.quantize,
            tokenizer=self.tokenizer,
            pre_tokenizer=self.pre_tokenizer,
            max_shard_size=self.max_shard_size,
        )


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Mapping[str, str]:
    out: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", ctx, param)
        if out.setdefault(key.strip(), value) != value:
            raise click.BadParameter(f"{key.strip()} is given twice with different values", ctx, param)
    return out


tokenizer_option = click.option(
    "--tokenizer",
    type=PATH,
    metavar="PATH",
    help="Tokenizer folder or file that goes along.  [default: the one beside the source]",
)

_SOURCE = (
    click.option("--format", type=Format(), metavar="NAME", help="Format of the source.  [default: found out]"),
    click.option("--iteration", type=click.IntRange(0), metavar="N", help="Iteration to take.  [default: latest]"),
    click.option("--family", metavar="NAME", help="Model family, such as llama.  [default: from the config]"),
    click.option("--config", type=PATH, metavar="PATH", help="A config.json for a source that has none."),
    click.option(
        "--set",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_pairs,
        help="A configuration value, under the source's own key or crossdock's.  [repeatable]",
    ),
)

_TARGET = (
    click.option("--to", required=True, type=Format(written=True), metavar="FORMAT", help="gguf or hf."),
    click.option(
        "--dtype",
        type=Dtype("auto"),
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto (as the source), float32, bfloat16, float16; also f32, bf16, f16.",
    ),
    click.option(
        "-q",
        "--quantize",
        type=Dtype(),
        metavar="NAME",
        help="Quantise matrices: q8_0, q5_1, q5_0, q4_1, q4_0 (gguf).",
    ),
    tokenizer_option,
    click.option("--pre-tokenizer", metavar="NAME", help="Pre-tokenizer type for gguf.  [default: found out]"),
    click.option(
        "--max-shard-size",
        type=Size(),
        default="5GB",
        show_default=True,
        metavar="SIZE",
        help="Largest safetensors file (hf).",
    ),
)

_RUNNING = (
    click.option(
        "--memory",
        type=Size(),
        default="256MiB",
        show_default=True,
        metavar="SIZE",
        help="Memory for all workers together, whatever the model's size.",
    ),
    click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads.  [default: one per core]"),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
progress_option = click.option("--no-progress", is_flag=True, help="Show no progress on stderr.")


def source_options(function: Function) -> Function:
    """Options on reading the source, given to the command as `source: SourceFlags`."""
    return _packed(function, _SOURCE, "source", SourceFlags)


def target_options(function: Function) -> Function:
    """Options on what is written, given to the command as `target: TargetFlags`."""
    return _packed(function, _TARGET, "target", TargetFlags)


def running_options(function: Function) -> Function:
    """`memory` in bytes and `workers`, None where the library decides."""
    for option in reversed(_RUNNING):
        function = option(function)
    return function


def _packed(
    function: Function, options: Sequence[Callable[[Any], Any]], name: str, flags: type[Any]
) -> Function:
    @wraps(function)
    def call(**given: Any) -> Any:
        given[name] = flags(**{field: given.pop(field) for field in flags.__dataclass_fields__})
        return function(**given)

    out: Any = call
    for option in reversed(options):
        out = option(out)
    return out  # type: ignore[no-any-return]
