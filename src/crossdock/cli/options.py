"""The options that commands share, and their values: sizes, dtypes, KEY=VALUE.

What only the library can know (is there such a file, does that dtype fit the target) is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from crossdock.errors import UsageError
from crossdock.wording import nearest

if TYPE_CHECKING:
    from crossdock import Checkpoint, Plan
    from crossdock.formats.stored import Source

Function = TypeVar("Function", bound=Callable[..., Any])

UNITS: Mapping[str, int] = MappingProxyType(
    {"": 1} | {p: 1000**n for n, p in enumerate("kmgt", 1)} | {f"{p}i": 1024**n for n, p in enumerate("kmgt", 1)}
)
SIZE = re.compile(r"(\d+(?:\.\d+)?) *((?:[kmgt]i?)?)b?", re.IGNORECASE | re.ASCII)
LARGEST = 1 << 60
WRITTEN = "f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0"  # for messages: what the targets take
QUANTISED = (
    "q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q3_k_l, q3_k_m, q3_k_s, q2_k, q5_1, q5_0, q4_1, q4_0 (gguf); "
    "fp8, fp8_static (hf); fp8, w8a16, w4a16 (trtllm)"
)
PATH = click.Path(path_type=Path)


def size(text: str) -> int:
    """Bytes: "5GB" is 5 * 10**9, "256MiB" is 256 * 2**20."""
    match = SIZE.fullmatch(text.strip()) if len(text) < 40 else None
    out = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if match and not 0 < out <= LARGEST:
        raise click.BadParameter(f"{text} is too {'large' if out else 'small'}")
    if not match:
        raise click.BadParameter(f"{text!r} is not a size; write it like 5GB, 500MB or 2GiB")
    return out


def whole(text: str) -> int:
    """A number without sign."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise click.BadParameter(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A number of at least one."""
    number = 0 if text.removeprefix("-").isdecimal() and text.startswith("-") else whole(text)
    if number < 1:
        raise click.BadParameter(f"{text} is too small; it must be at least 1")
    return number


def dtype(text: str, known: str = WRITTEN, more: Sequence[str] = ()) -> str:
    """A dtype or quantisation under any of its usual names, as its canonical name. more: what else may be meant."""
    from crossdock.codecs.registry import canonical_name

    try:
        return canonical_name(text, more)
    except UsageError as error:
        problem = error.problems[0]
        near = "" if problem.expected.startswith("one of") else f"; did you mean {problem.expected}?"
        raise click.BadParameter(f"{problem.what}{near or f'; choose one of {known}'}") from None


def dtype_or_auto(text: str) -> str:
    """As `dtype`, or "auto"."""
    return text if text == "auto" else dtype(text)


def quantisation(text: str) -> str:
    """As `dtype`, or what a target knows by name beside the codecs: w8a16, fp8_static."""
    from crossdock.formats import registry

    named = text.lower().replace("-", "_")
    quantizations = [own for name in registry.targets() for own in registry.target(name).quantizations]
    return named if named in quantizations else dtype(text, QUANTISED, quantizations)


def source_format(text: str) -> str:
    """A format that is read."""
    from crossdock.formats import registry

    return _one_of(text, registry.names(), "reads")


def target_format(text: str) -> str:
    """A format that is written."""
    from crossdock.formats import registry

    return _one_of(text, registry.targets(), "writes")


def _one_of(text: str, known: Sequence[str], verb: str) -> str:
    name = text.lower()
    if name in known:
        return name
    near = nearest(name, known)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    raise click.BadParameter(f"crossdock {verb} no format {text!r}; {hint}")


@dataclass(frozen=True, slots=True)
class SourceFlags:
    """How the user wants the source to be read."""

    format: str | None
    iteration: int | None
    family: str | None
    config: Path | None
    set: Mapping[str, str]
    rename: Mapping[str, str]
    base: Path | None = None
    merge: bool = False
    norm_eps: float | None = None
    rope_base: float | None = None

    @property
    def settings(self) -> Mapping[str, str]:
        """What is set of the configuration: by --set, and by the options for single fields."""
        named = {"norm_eps": self.norm_eps, "rope_theta": self.rope_base}
        return {**self.set, **{field: repr(value) for field, value in named.items() if value is not None}}

    def read(self, path: Path) -> Source:
        """What is stored at `path`: headers only, without its meaning."""
        from crossdock.formats import registry

        return registry.open_source(path, format=self.format, iteration=self.iteration)

    def interpret(self, source: Source) -> Checkpoint:
        """Its meaning: family, configuration, canonical tensors."""
        from crossdock import delivery

        if (self.base is None) == self.merge:
            raise UsageError("--base MODEL and --merge go together: the adapter is added to the model")
        overrides = delivery.overrides_from(
            family=self.family, config=self.config, set=self.settings, rename=self.rename
        )
        return delivery.interpret(source, overrides, self.base)

    def open(self, path: Path) -> Checkpoint:
        """Both."""
        return self.interpret(self.read(path))

    def words(self) -> list[str]:
        """The same options again, for a command to be shown."""
        options = {"format": self.format, "iteration": self.iteration, "family": self.family, "config": self.config,
                 "base": self.base}  # fmt: skip
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        words += ["--merge"] if self.merge else []
        pairs = [("--set", key, value) for key, value in self.settings.items()]
        pairs += [("--rename", key, value) for key, value in self.rename.items()]
        return words + [word for option, key, value in pairs for word in (option, f"{key}={value}")]


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """What the user wants to be written."""

    to: str
    dtype: str
    quantize: str | None
    tokenizer: Path | None
    pre_tokenizer: str | None
    max_shard_size: int
    tp: int
    pp: int
    moe_tp: int
    moe_ep: int
    use_parallel_embedding: bool
    embedding_sharding_dim: int
    fp8_kv_cache: bool
    allow_overflow: bool
    keep_order: bool

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
            tp=self.tp,
            pp=self.pp,
            moe_tp=self.moe_tp,
            moe_ep=self.moe_ep,
            use_parallel_embedding=self.use_parallel_embedding,
            embedding_sharding_dim=self.embedding_sharding_dim,
            fp8_kv_cache=self.fp8_kv_cache,
            allow_overflow=self.allow_overflow,
            keep_order=self.keep_order,
        )

    def next_steps(self, output: Path, source: Sequence[str]) -> Sequence[str]:
        """What follows an export to `output`."""
        from crossdock.formats import registry

        return registry.target(self.to).next_steps(output, source)


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Mapping[str, str]:
    out: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", ctx, param)
        if out.setdefault(key.strip(), value) != value:
            raise click.BadParameter(f"{key.strip()} is given twice with different values", ctx, param)
    return out


def _listed(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """`--pre-tokenizer list` shows the names and ends."""
    if value == "list" and not ctx.resilient_parsing:
        from crossdock.tokenizers.pre_tokenizers import table

        click.echo("\n".join(table().names))
        ctx.exit()
    return value


tokenizer_option = click.option(
    "--tokenizer",
    type=PATH,
    metavar="PATH",
    help="Tokenizer folder or file that goes along.  [default: the one beside the source]",
)

keep_order_option = click.option(
    "--keep-order", is_flag=True, help="Leave the optimizer's vectors in their order (gguf-checkpoint)."
)
family_option = click.option(
    "--family", metavar="NAME", help="Model family, such as llama, or a file of one.  [default: from the config]"
)
set_option = click.option(
    "--set",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="A configuration value, under the source's own key or crossdock's.  [repeatable]",
)

rename_option = click.option(
    "--rename",
    multiple=True,
    metavar="PATTERN=NAME",
    callback=_pairs,
    help="Read tensors of own names, such as blocks.{layer}.qkv.weight, under the format's.  [repeatable]",
)

_SOURCE = (
    click.option("--format", type=source_format, metavar="NAME", help="Format of the source.  [default: found out]"),
    click.option("--iteration", type=whole, metavar="N", help="Iteration to take.  [default: latest]"),
    family_option,
    click.option("--config", type=PATH, metavar="PATH", help="A config.json, or JSON of Megatron's args."),
    set_option,
    rename_option,
    click.option("--base", type=PATH, metavar="MODEL", help="The model that the source is an adapter of."),
    click.option("--merge", is_flag=True, help="Add the adapter to its --base."),
    click.option("--norm-eps", type=float, metavar="X", help="The norms' epsilon, for a source that lacks it."),
    click.option("--rope-base", type=float, metavar="X", help="The base of rope, for a source that lacks it."),
)

_TARGET = (
    click.option(
        "--to",
        required=True,
        type=target_format,
        metavar="FORMAT",
        help="gguf, hf, trtllm; gguf-checkpoint, gguf-lora, peft.",
    ),
    click.option(
        "--dtype",
        type=dtype_or_auto,
        default="auto",
        show_default=True,
        metavar="NAME",
        help="auto (as the source), float32, bfloat16, float16; also f32, bf16, f16.",
    ),
    click.option(
        "-q",
        "--quantize",
        type=quantisation,
        metavar="NAME",
        help=f"Quantise matrices: {QUANTISED}",
    ),
    tokenizer_option,
    click.option(
        "--pre-tokenizer",
        metavar="NAME",
        callback=_listed,
        help="Pre-tokenizer type for gguf; `list` shows all.  [default: found out]",
    ),
    click.option(
        "--max-shard-size",
        type=size,
        default="5GB",
        show_default=True,
        metavar="SIZE",
        help="Largest safetensors file (hf).",
    ),
    click.option(
        "--tp",
        "--tensor-parallel-size",
        type=positive,
        default="1",
        metavar="N",
        help="Tensor parallel ranks (trtllm).",
    ),
    click.option(
        "--pp", "--pipeline-parallel-size", type=positive, default="1", metavar="N", help="Pipeline stages (trtllm)."
    ),
    click.option(
        "--moe-tp", type=whole, default="0", metavar="N", help="Ranks that share each expert.  [default: tp / moe-ep]"
    ),
    click.option(
        "--moe-ep",
        type=whole,
        default="0",
        metavar="N",
        help="Ranks that share the experts out.  [default: tp / moe-tp]",
    ),
    click.option("--use-parallel-embedding", is_flag=True, help="Cut the embedding over the ranks too (trtllm)."),
    click.option(
        "--embedding-sharding-dim", type=whole, default="0", metavar="N", help="0: cut its rows, 1: its columns."
    ),
    click.option("--fp8-kv-cache", is_flag=True, help="The engine keeps keys and values in fp8 (trtllm)."),
    click.option("--allow-overflow", is_flag=True, help="Let values become Inf in float16 (trtllm)."),
    keep_order_option,
)

_RUNNING = (
    click.option(
        "--memory",
        type=size,
        default="256MiB",
        show_default=True,
        metavar="SIZE",
        help="Memory for all workers together, whatever the model's size.",
    ),
    click.option("--workers", type=positive, metavar="N", help="Threads.  [default: one or two per core]"),
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


def _packed(function: Function, options: Sequence[Callable[[Any], Any]], name: str, flags: type[Any]) -> Function:
    @wraps(function)
    def call(**arguments: Any) -> Any:
        arguments[name] = flags(**{field: arguments.pop(field) for field in flags.__dataclass_fields__})
        return function(**arguments)

    out: Any = call
    for option in reversed(options):
        out = option(out)
    return out  # type: ignore[no-any-return]
