"""The options that commands share, and their values: sizes, dtypes, KEY=VALUE.

What only the library can know (is there such a file, does that dtype fit the target) is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.options import Option, options_of, positive, size, whole
from crossdock.running.options import RunOptions, WriteOptions
from crossdock.wording import nearest

if TYPE_CHECKING:
    from crossdock import Checkpoint, Plan
    from crossdock.formats.stored import Source

Function = TypeVar("Function", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class Parsed(click.ParamType[Any]):
    """A value that `crossdock.options` reads: what is wrong with it is said there."""

    name = "value"

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, or click's error about it."""
        try:
            return self.read(value)
        except UsageError as error:
            self.fail(error.problems[0].what, param, ctx)


class HeadedOption(click.Option):
    """An option that knows its heading in the help text, and whose help is filled in when it is shown."""

    def __init__(self, names: Sequence[str], *, heading: str, **more: Any) -> None:
        super().__init__(names, **more)
        self.heading = heading

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The row of the help text."""
        if self.help is not None and "{quantizations}" in self.help:
            self.help = self.help.format(quantizations=_quantizations())
        return super().get_help_record(ctx)


def _quantizations() -> str:
    """What each target can be quantised to: "q8_0, q6_k (gguf); fp8 (hf)"."""
    known = {name: registry.target(name).quantizations() for name in registry.targets()}
    return "; ".join(f"{', '.join(names)} ({target})" for target, names in known.items() if names)


def source_format(text: str) -> str:
    """A format that is read."""
    return _one_of(text, registry.names(), "reads")


def target_format(text: str) -> str:
    """A format that is written."""
    return _one_of(text, registry.targets(), "writes")


def _one_of(text: str, known: Sequence[str], verb: str) -> str:
    name = text.lower()
    if name in known:
        return name
    near = nearest(name, known)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    raise click.BadParameter(f"crossdock {verb} no format {text!r}; {hint}")


SIZE, WHOLE, POSITIVE = Parsed(size), Parsed(whole), Parsed(positive)


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
    """What the user wants to be written: the target, and those of its options that are not left at their defaults."""

    to: str
    options: Mapping[str, Any]

    def plan(self, checkpoint: Checkpoint) -> Plan:
        """Plan the conversion: no tensor data is read."""
        import crossdock

        return crossdock.plan(checkpoint, self.to, **self.options)

    def words(self) -> list[str]:
        """The options that an output does not show, for a command to be shown that reads it."""
        again = {name: value for name, value in self.options.items() if name in REPLAYED}
        return [word for n, v in again.items() for word in (REPLAYED[n].flag, *([] if v is True else [str(v)]))]

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
            raise click.BadParameter(f"{key.strip()} is given twice with different values", ctx, param)
    return out


family_option = click.option(
    "--family", metavar="NAME", help="Model family, such as llama.  [default: from the config]"
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
    click.option("--iteration", type=WHOLE, metavar="N", help="Iteration to take.  [default: latest]"),
    family_option,
    click.option("--config", type=PATH, metavar="PATH", help="A config.json, or JSON of Megatron's args."),
    set_option,
    rename_option,
    click.option("--base", type=PATH, metavar="MODEL", help="The model that the source is an adapter of."),
    click.option("--merge", is_flag=True, help="Add the adapter to its --base."),
    click.option("--norm-eps", type=float, metavar="X", help="The norms' epsilon, for a source that lacks it."),
    click.option("--rope-base", type=float, metavar="X", help="The base of rope, for a source that lacks it."),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
progress_option = click.option("--no-progress", is_flag=True, help="Show no progress on stderr.")


def source_options(function: Function) -> Function:
    """Options on reading the source, passed to the command as `source: SourceFlags`."""
    return _packed(function, _SOURCE, "source", lambda values: SourceFlags(**values))


def target_options(function: Function) -> Function:
    """`--to` and the options of all targets, passed to the command as `target: TargetFlags`."""
    to = click.option(
        "--to", cls=HeadedOption, heading="Target", required=True, type=target_format, metavar="FORMAT",
        help=f"{', '.join(registry.targets())}.",
    )  # fmt: skip
    made = [_option(about, _owners(name)) for name, about in _OF_TARGETS.items()]
    return _packed(function, [to, *made], "target", _target)


def replay_options(function: Function) -> Function:
    """The options of targets that an output does not show, passed to the command as `replay`."""
    made = [_option(about, _owners(name)) for name, about in REPLAYED.items()]
    return _packed(function, made, "replay", _chosen)


def _of_targets() -> Mapping[str, Option]:
    """The options of all targets by name; one that several have is the same in all."""
    known: dict[str, Option] = {}
    for target in registry.targets():
        own = options_of(registry.options_type(target))
        known |= {name: about for name, about in own.items() if name not in known}
    return MappingProxyType(known)


def _owners(option: str) -> Sequence[str]:
    """The targets that have an option; none where all do."""
    owners = registry.with_option(option)
    return () if len(owners) == len(registry.targets()) else owners


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _target(values: Mapping[str, Any]) -> TargetFlags:
    to, chosen = values["to"], {name: value for name, value in _chosen(values).items() if name != "to"}
    registry.made_target(to, chosen)  # what is wrong with them is said before anything is read
    return TargetFlags(to, chosen)


def options_for(kind: type[Any], name: str) -> Callable[[Function], Function]:
    """Adds the options of a dataclass to a command, which gets those that are not left at their defaults as `name`."""
    made = [_option(about) for about in options_of(kind).values()]

    def add(function: Function) -> Function:
        return _packed(function, made, name, _chosen)

    return add


def _option(about: Option, owners: Sequence[str] = ()) -> Callable[[Any], Any]:
    """The command line's option for a field of a dataclass; `owners`: the targets that have it, where not all do."""
    whose = f" ({', '.join(owners)})" if owners else ""
    default = f"  [default: {about.default}]" if about.default else ""
    text, bracket, rest = about.help.partition("  [")
    help = f"{text.removesuffix('.')}{whose}.{bracket}{rest}{default}" if owners else f"{about.help}{default}"
    more: dict[str, Any] = {"is_flag": True, "default": None}
    if about.metavar:
        more = {"type": Parsed(about.read), "metavar": about.metavar, "default": None, "multiple": about.many}
        more["callback"] = _listing(about)
    names = sorted((about.flag, *about.also), key=lambda name: name.startswith("--"))  # -q, --quantize; --tp, --tensor…
    return click.option(*names, cls=HeadedOption, heading=about.heading, help=help, **more)


def _listing(about: Option) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """`list` in place of a value shows the choices, where there are some, and ends."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value == "list" and about.choices is not None and not ctx.resilient_parsing:
            click.echo("\n".join(about.choices()))
            ctx.exit()
        return frozenset().union(*value) or None if about.many else value

    return callback


def _packed(
    function: Function, options: Sequence[Callable[[Any], Any]], name: str, pack: Callable[[Mapping[str, Any]], Any]
) -> Function:
    """`function` with `options`, whose values it gets as one argument."""
    names: list[str] = []

    @wraps(function)
    def call(**values: Any) -> Any:
        values[name] = pack({option: values.pop(option) for option in names})
        return function(**values)

    out: Any = call
    before = len(getattr(out, "__click_params__", ()))
    for option in reversed(options):
        out = option(out)
    names += [str(param.name) for param in out.__click_params__[before:]]
    return out  # type: ignore[no-any-return]


_OF_TARGETS = _of_targets()
REPLAYED = MappingProxyType({name: about for name, about in _OF_TARGETS.items() if about.replayed})
running_options = options_for(RunOptions, "running")
writing_options = options_for(WriteOptions, "running")
