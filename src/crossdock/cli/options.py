"""The options that commands share, and their values: sizes, dtypes, KEY=VALUE.

What only the library can know (is there such a file, does that dtype fit the target) is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

import crossdock
from crossdock import delivery
from crossdock.cli.guesses import ENGINES
from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.options import Option, made, one_of, options_of, whole
from crossdock.running.options import RunOptions, WriteOptions
from crossdock.wording import nearest

if TYPE_CHECKING:
    from crossdock import Checkpoint, Plan
    from crossdock.formats.stored import Source

Function = TypeVar("Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path, readable=False)  # what cannot be read is the machine's matter, not the usage's


class Parsed(click.ParamType[Any]):
    """A value that `crossdock.options` reads: what is wrong with it is said there. `listed`: "list" is let through."""

    name = "value"

    def __init__(self, read: Callable[[Any], Any], *, listed: bool = False) -> None:
        self.read, self.listed = read, listed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, or click's error about it."""
        if self.listed and value == "list":
            return value
        try:
            return self.read(value)
        except UsageError as error:
            self.fail(error.problems[0].what, param, ctx)


_LISTED = "{quantizations}"  # in the help of an option whose values are listed below the options


class HeadedOption(click.Option):
    """An option that knows its heading in the help text, and whether its values are listed there."""

    def __init__(self, names: Sequence[str], *, heading: str, **more: Any) -> None:
        text = str(more.pop("help", ""))
        super().__init__(names, help=text.replace(_LISTED, ""), **more)
        self.heading, self.is_listed = heading, _LISTED in text

    def listed(self) -> list[tuple[str, str]]:
        """Rows of a section of the help text that lists the option's values by target; no rows for most options."""
        known = {name: registry.target(name).quantizations() for name in registry.targets() if self.is_listed}
        return [(target, ", ".join(names)) for target, names in known.items() if names]


def source_format(text: str) -> str:
    """A format that is read."""
    return _one_of(text, registry.names(), "source")


def target_format(text: str) -> str:
    """A format that is written."""
    return _one_of(ENGINES.get(text.lower(), text), registry.targets(), "target")


def _one_of(text: str, known: Sequence[str], role: str) -> str:
    name = text.lower()
    if name in known:
        return name
    near = nearest(name, known)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    raise click.BadParameter(f"unknown {role} format {text!r}; {hint}")


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
    weights: str = "model"

    @property
    def settings(self) -> Mapping[str, str]:
        """What is set of the configuration: by --set, and by the options for single fields."""
        named = {"norm_eps": self.norm_eps, "rope_theta": self.rope_base}
        return {**self.set, **{field: repr(value) for field, value in named.items() if value is not None}}

    def read(self, path: Path) -> Source:
        """What is stored at `path`: headers only, without its meaning."""
        return registry.open_source(path, format=self.format, iteration=self.iteration)

    def interpret(self, source: Source) -> Checkpoint:
        """Its meaning: family, configuration, canonical tensors."""
        if self.merge and self.base is None:
            raise UsageError("--merge needs the model that the adapter is added to", fix="--base MODEL --merge")
        overrides = delivery.overrides_from(
            family=self.family, config=self.config, set=self.settings, rename=self.rename, weights=self.weights
        )
        return delivery.interpret(source, overrides, self.base, merge=self.merge)

    def open(self, path: Path) -> Checkpoint:
        """Read and interpret `path`."""
        return self.interpret(self.read(path))

    def words(self) -> list[str]:
        """The same options again, for a command to be shown."""
        options = {"format": self.format, "iteration": self.iteration, "family": self.family, "config": self.config,
                 "base": self.base}  # fmt: skip
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        words += ["--merge"] if self.merge else []
        words += ["--weights", self.weights] if self.weights != "model" else []
        pairs = [("--set", key, value) for key, value in self.settings.items()]
        pairs += [("--rename", key, value) for key, value in self.rename.items()]
        return words + [word for option, key, value in pairs for word in (option, f"{key}={value}")]


@dataclass(frozen=True, slots=True)
class TargetFlags:
    """What the user wants to be written: the target, and those of its options that are not left at their defaults."""

    to: str
    options: Mapping[str, Any]

    def plan(self, checkpoint: Checkpoint) -> Plan:
        """Plan the conversion: no tensor data is read."""
        return crossdock.plan(checkpoint, self.to, **self.options)

    def words(self) -> list[str]:
        """The options that an output does not show, for a command to be shown that reads it."""
        again = {name: value for name, value in self.options.items() if name in replayed()}
        return [word for n, v in again.items() for word in (replayed()[n].flag, *([] if v is True else [str(v)]))]

    def label(self) -> str:
        """What distinguishes the output from others of the same source: type and format."""
        kind = self.options.get("quantize") or self.options.get("dtype", "auto")
        words = ([] if kind == "auto" else [str(kind)]) + ([] if self.to == "gguf" else [self.to])
        return "-".join(words) or self.to

    def next_steps(self, output: Path, source: Sequence[str]) -> Sequence[str]:
        """What follows an export to `output`."""
        return registry.target(self.to).next_steps(output, source)


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> Mapping[str, str]:
    out: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", ctx, param)
        if out.setdefault(key.strip(), value) != value:
            raise click.BadParameter(f"{key.strip()} occurs twice with different values", ctx, param)
    return out


family_option = click.option(
    "--family", metavar="NAME", help="Model family, or a family file.  [default: auto-detected]"
)
set_option = click.option(
    "--set",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="Override a configuration value.  [repeatable]",
)

rename_option = click.option(
    "--rename",
    multiple=True,
    metavar="PATTERN=NAME",
    callback=_pairs,
    help="Map custom tensor names to the format's names.  [repeatable]",
)

_SOURCE = (
    click.option(
        "--format", type=source_format, metavar="NAME", help="Format of the source.  [default: auto-detected]"
    ),
    click.option("--iteration", type=Parsed(whole), metavar="N", help="Iteration to take.  [default: latest]"),
    family_option,
    click.option("--config", type=PATH, metavar="PATH", help="A config.json, or Megatron's args as JSON."),
    set_option,
    rename_option,
    click.option("--base", type=PATH, metavar="MODEL", help="Base model of a source that is an adapter."),
    click.option("--merge", is_flag=True, help="Merge the adapter into --base."),
    click.option("--norm-eps", type=float, metavar="X", help="Epsilon of the norms, if the source lacks it."),
    click.option(
        "--weights",
        type=Parsed(one_of("model", "master")),
        default="model",
        metavar="KIND",
        help="model, or the optimizer's: master.  [default: model]",
    ),
    click.option("--rope-base", type=float, metavar="X", help="Base of rope (theta), if the source lacks it."),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
progress_option = click.option("--no-progress", is_flag=True, help="Do not show progress on stderr.")


def source_options(function: Function) -> Function:
    """Options on reading the source, passed to the command as `source: SourceFlags`."""
    return grouped(_SOURCE, "source", SourceFlags)(function)


def grouped(
    options: Sequence[Callable[[Any], Any]], name: str, kind: Callable[..., Any]
) -> Callable[[Function], Function]:
    """Adds click's `options` to a command, which gets them as one argument: the dataclass `kind` of their values."""

    def add(function: Function) -> Function:
        @wraps(function)
        def call(**values: Any) -> Any:
            own = {one.name: values.pop(one.name) for one in fields(kind)}  # type: ignore[arg-type]
            return function(**values, **{name: kind(**own)})

        out: Any = call
        for option in reversed(options):
            out = option(out)
        return out  # type: ignore[no-any-return]

    return add


def target_options(function: Function) -> Function:
    """`--to` and the options of all targets, passed to the command as `target: TargetFlags`."""
    return _packed(function, _target_options, "target", _target)


def replay_options(function: Function) -> Function:
    """The options of targets that an output does not show, passed to the command as `replay`."""
    return _packed(function, lambda: _options(replayed()), "replay", _chosen)


def running_options(function: Function) -> Function:
    """Options of running a plan, passed to the command as `running`: those that are not left at their defaults."""
    return _packed(function, lambda: _options(options_of(RunOptions)), "running", _chosen)


def writing_options(function: Function) -> Function:
    """Options of writing an output, passed to the command as `running`."""
    return _packed(function, lambda: _options(options_of(WriteOptions)), "running", _chosen)


def options_for(kind: type[Any], name: str) -> Callable[[Function], Function]:
    """Adds the options of a dataclass to a command, which gets it as `name`."""
    return lambda function: _packed(
        function, lambda: _options(options_of(kind)), name, lambda values: made(kind, _chosen(values))
    )


@cache
def replayed() -> Mapping[str, Option]:
    """The options of targets that an output does not show."""
    return {name: about for name, about in _of_targets().items() if about.replayed}


@cache
def _of_targets() -> Mapping[str, Option]:
    """The options of all targets by name; one that several have is the same in all."""
    known: dict[str, Option] = {}
    for target in registry.targets():
        own = options_of(registry.options_type(target))
        known |= {name: about for name, about in own.items() if name not in known}
    return MappingProxyType(known)


def _target_options() -> Sequence[click.Option]:
    to = HeadedOption(
        ["--to"], heading="Target", required=True, type=target_format, metavar="FORMAT",
        help=" ".join(registry.targets()),
    )  # fmt: skip
    return [to, *_options(_of_targets())]


def _target(values: Mapping[str, Any]) -> TargetFlags:
    to, chosen = values["to"], {name: value for name, value in _chosen(values).items() if name != "to"}
    registry.made_target(to, chosen)  # what is wrong with them is said before anything is read
    return TargetFlags(to, chosen)


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _options(known: Mapping[str, Option]) -> list[click.Option]:
    """The command line's options for fields of dataclasses."""
    return [_option(about, _owners(name)) for name, about in known.items()]


def _owners(option: str) -> Sequence[str]:
    """The targets that have an option; none where all do, and where none does."""
    owners = registry.with_option(option)
    return () if len(owners) == len(registry.targets()) else owners


def _option(about: Option, owners: Sequence[str]) -> click.Option:
    others = [name for name in registry.targets() if name not in owners]
    whose = f" (not {', '.join(others)})" if len(others) < len(owners) else f" ({', '.join(owners)})"
    default = f"  [default: {about.default}]" if about.default else ""
    text, bracket, rest = about.help.partition("  [")
    help = f"{text.removesuffix('.')}{whose}.{bracket}{rest}{default}" if owners else f"{about.help}{default}"
    more: dict[str, Any] = {"is_flag": True, "default": None}
    if about.metavar:
        more = {
            "type": Parsed(about.read, listed=about.choices is not None),
            "metavar": about.metavar,
            "default": None,
            "multiple": about.many,
        }
        more["callback"] = _listing(about)
    names = sorted((about.flag, *about.also), key=lambda name: name.startswith("--"))  # short ones first
    return HeadedOption(names, heading=about.heading, help=help, **more)


def _listing(about: Option) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """`list` in place of a value shows the choices, where there are some, and ends."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value == "list" and about.choices is not None and not ctx.resilient_parsing:
            click.echo("\n".join(about.choices()))
            ctx.exit()
        return frozenset().union(*value) or None if about.many else value

    return callback


def _packed(
    function: Function,
    options: Callable[[], Sequence[click.Option]],
    name: str,
    pack: Callable[[Mapping[str, Any]], Any],
) -> Function:
    """`function` with `options`, whose values it gets as one argument. They are made when the command is used."""
    late = cache(options)

    @wraps(function)
    def call(**values: Any) -> Any:
        own = {str(option.name): values.pop(str(option.name)) for option in late()}
        return function(**values, **{name: pack(own)})

    call.late_options = (late, *getattr(function, "late_options", ()))  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
