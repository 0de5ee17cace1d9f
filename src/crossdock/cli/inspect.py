"""`crossdock inspect`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossdock import summary
from crossdock.cli import show, tree
from crossdock.cli.extensions import foreign_file
from crossdock.cli.failures import print_problems
from crossdock.cli.options import PATH, SourceFlags, json_option, source_options
from crossdock.cli.plan import show_left_out
from crossdock.cli.sections import Sectioned, examples
from crossdock.errors import ConfigError, CrossdockError, PlanError

if TYPE_CHECKING:
    from crossdock import Checkpoint
    from crossdock.formats.stored import Source, StoredTensor

RANKS: Mapping[str, str] = {
    "tp": "tensor",
    "pp": "pipeline",
    "vpp": "virtual pipeline",
    "ep": "expert",
    "etp": "expert tensor",
}
WIDE = 60  # characters of a value shown

# fields whose defaults say what a plain model is; the default of any other means that it has nothing of the kind
_TELLING = ("hidden_act", "mlp_gated", "norm", "position_embedding", "rope_theta", "rope_type")


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock inspect runs/iter_0010000",
        "crossdock inspect model.gguf --tensors",
        "crossdock inspect model-hf/ --json | jq .parameters",
    ),
)
@click.argument("path", type=PATH)
@source_options
@click.option("--tensors", is_flag=True, help="List every stored tensor.")
@json_option
def inspect(path: Path, source: SourceFlags, tensors: bool, as_json: bool) -> int:
    """Show what is in the checkpoint PATH. Reads headers only.

    Format and origin, configuration with the origin of each value, parallel layout, types and tensors, what
    is left out, and what it would weigh as each target. If the configuration is incomplete, what is stored is
    shown all the same, then what is missing (exit code 3).
    """
    if foreign := foreign_file(path):
        return foreign.inspect(path, as_json=as_json)
    stored = source.read(path)
    checkpoint: Checkpoint | None = None
    error: CrossdockError | None = None
    try:
        checkpoint = source.interpret(stored)
    except (ConfigError, PlanError) as failed:
        error = failed  # what is stored can be shown all the same
    if as_json:
        show.print_json(_record(stored, checkpoint, error))
    else:
        _show(stored, checkpoint, every=tensors)
    if error is None:
        return 0
    if not as_json:
        show.say()
        show.flush()
        print_problems(error.problems)
    return error.exit_code


def _show(source: Source, checkpoint: Checkpoint | None, *, every: bool) -> None:
    show.say(click.style(show.clean(source.root), bold=True))
    tensors = list(source.tensors.values())
    facts = {"format": source.format, **source.notes}
    facts["files"] = f"{len(source.files):,}, {show.nbytes(sum(file.size for file in source.files))}"
    if source.ranks:
        facts["parallel"] = _parallel(source.ranks)
    if checkpoint is not None:
        config = checkpoint.described.config
        total = summary.parameters(checkpoint.family, config)
        facts["model"] = f"{config.family}, {show.about(total)} parameters ({show.number(total)})"
    show.facts(facts.items())
    if checkpoint is not None:
        _show_config(checkpoint)
    else:
        _show_metadata(source)
    if source.format == "gguf" and checkpoint is not None:
        _show_metadata(source)
    show.heading("Types")
    show.table(("dtype", "tensors", "elements", "bytes"), _census(tensors), "<>>>")
    show.heading("Tensors")
    if every:
        rows = [
            (f"{one.part}/{one.name}" if one.part else one.name, show.shape(one.shape), one.dtype) for one in tensors
        ]
        show.table(("name", "shape", "dtype"), rows, "<<<")
    else:
        show.table(("name", "count", "shape", "dtype", "elements"), _tree(tensors), "<><<>")
    _show_skipped(source)
    if checkpoint is not None:
        unread = {name: why for name, why in checkpoint.unread.items() if name not in source.skipped}
        show_left_out(unread, checkpoint.described.ignored, every_key=True)
        rows = [(to, dtype, show.nbytes(size)) for to, dtype, size in summary.target_sizes(checkpoint)]
        if rows:
            show.heading("As a target")
        show.table((), rows, "<<>")


def _parallel(ranks: Mapping[str, int]) -> str:
    return ", ".join(f"{RANKS.get(name, name)} {size}" for name, size in ranks.items() if size > 1) or "none"


def _show_config(checkpoint: Checkpoint) -> None:
    """Every field with its origin; of the defaults only those that switch something on, together."""
    described, at = checkpoint.described, checkpoint.source.metadata_at
    show.heading(f"Configuration, from {at}" if at else "Configuration")
    origins = {name: origin.removesuffix(f" in {at}") for name, origin in described.origins.items()}
    values = described.config.as_dict()
    non_default = {name: value for name, value in values.items() if described.origins.get(name) != "default"}
    show.table((), [(n, _value(v), origins.get(n, "")) for n, v in non_default.items()], "<<<")
    rest = [f"{name} {_value(values[name])}" for name in _TELLING if name not in non_default]
    if rest:
        show.table((), [("by default", ", ".join(rest))], "<<")


def _show_metadata(source: Source) -> None:
    if source.metadata:
        show.heading(f"Metadata of {source.metadata_at}" if source.metadata_at else "Metadata")
        show.table((), [(key, _value(value)) for key, value in source.metadata.items()], "<<")


def _show_skipped(source: Source) -> None:
    if source.skipped:
        show.heading(f"Not weights, {show.nbytes(source.skipped_bytes)} not read")
        show.table((), show.reasons(source.skipped), "<<")


def _value(value: Any) -> str:
    """A value in one short line; arrays as their kind and length."""
    if getattr(value, "size", 0) > 8 and hasattr(value, "dtype"):
        return f"{value.dtype} × {value.size:,}"
    if isinstance(value, (list, tuple)) and len(value) > 8:
        kinds = {type(item).__name__ for item in value}
        if value == type(value)(range(value[0], value[0] + len(value))) if kinds == {"int"} else False:
            return f"{value[0]} to {value[-1]}"
        return f"{kinds.pop() if len(kinds) == 1 else 'value'} × {len(value):,}"
    if isinstance(value, float):
        return f"{value:.7g}"  # what float32 holds; --json has every digit
    if isinstance(value, Mapping) and value:
        value = ", ".join(f"{key}={item}" for key, item in value.items())
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= WIDE else text[: WIDE - 1] + "…"


def _by_dtype(tensors: Iterable[StoredTensor]) -> dict[str, list[int]]:
    """dtype -> tensors, elements, bytes; the most bytes first."""
    sums: dict[str, list[int]] = {}
    for tensor in tensors:
        total = sums.setdefault(tensor.dtype, [0, 0, 0])
        for i, more in enumerate((1, prod(tensor.shape), summary.stored_bytes(tensor))):
            total[i] += more
    return dict(sorted(sums.items(), key=lambda item: -item[1][2]))


def _census(tensors: Iterable[StoredTensor]) -> list[tuple[str, str, str, str]]:
    return [
        (dtype, show.number(count), show.number(elements), show.nbytes(size))
        for dtype, (count, elements, size) in _by_dtype(tensors).items()
    ]


def _tree(tensors: Iterable[StoredTensor]) -> list[tuple[str, str, str, str, str]]:
    groups = tree.collapse((one.name, one.shape, one.dtype) for one in tensors)
    return [
        (text, show.number(one.count), show.shape(one.shape), one.dtype, show.about(one.parameters))
        if one is not None
        else (text, "", "", "", "")
        for text, one in tree.lines(groups)
    ]


def _record(source: Source, checkpoint: Checkpoint | None, error: CrossdockError | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "path": source.root,
        "format": source.format,
        "notes": source.notes,
        "files": [{"path": file.path, "nbytes": file.size} for file in source.files],
        "ranks": source.ranks,
        "dtypes": {
            dtype: {"tensors": count, "elements": elements, "nbytes": size}
            for dtype, (count, elements, size) in _by_dtype(source.tensors.values()).items()
        },
        "tensors": [
            {
                "name": one.name,
                "part": one.part,
                "shape": one.shape,
                "dtype": one.dtype,
                "nbytes": summary.stored_bytes(one),
            }
            for one in source.tensors.values()
        ],
        "skipped": source.skipped,
        "skipped_nbytes": source.skipped_bytes,
        "travels": source.companion_files,
        "metadata": {key: _short(value) for key, value in source.metadata.items()},
    }
    if checkpoint is not None:
        described = checkpoint.described
        sizes = summary.target_sizes(checkpoint)
        out |= {
            "family": described.config.family,
            "parameters": summary.parameters(checkpoint.family, described.config),
            "config": {
                name: {"value": value, "origin": described.origins.get(name, "")}
                for name, value in described.config.as_dict().items()
            },
            "unread": checkpoint.unread,
            "ignored": described.ignored,
            "targets": [{"to": to, "dtype": dtype, "nbytes": size} for to, dtype, size in sizes],
        }
    if error is not None:
        out |= {"error": type(error).__name__, "problems": [one.as_dict() for one in error.problems]}
    return out


def _short(value: Any) -> Any:
    long = isinstance(value, (list, tuple)) and len(value) >= show.LONG
    return _value(value) if long else value
