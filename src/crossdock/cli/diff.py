"""`crossdock diff`: what two checkpoints differ in, whatever their formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import crossdock
from crossdock.cli import show
from crossdock.cli.options import (
    PATH,
    SourceFlags,
    family_option,
    grouped,
    json_option,
    progress_option,
    running_options,
    set_option,
)
from crossdock.cli.progress import watching
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock.running.diff import DiffReport, FieldDiff, TensorDiff

MOST = 10  # tensors listed by layer
EQUAL = ("equal", "equal after cast")


@dataclass(frozen=True, slots=True)
class ModelFlags:
    """What the user says of both models; `config_b`: of B, where that is another."""

    family: str | None
    config: Path | None
    config_b: Path | None
    set: Mapping[str, str]


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock diff model.gguf runs/iter_0010000",
        "crossdock diff runs/iter_0009000 runs/iter_0010000",
        "crossdock diff model-hf/ other-hf/ --json",
    ),
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@grouped(
    (
        family_option,
        click.option("--config", type=PATH, metavar="PATH", help="A config.json for sources that have none."),
        click.option("--config-b", type=PATH, metavar="PATH", help="Another for B.  [default: as --config]"),
        set_option,
    ),
    "model",
    ModelFlags,
)
@running_options
@json_option
@progress_option
def diff(
    a: Path,
    b: Path,
    model: ModelFlags,
    running: Mapping[str, Any],
    as_json: bool,
    no_progress: bool,
) -> int:
    """Compare the checkpoints A and B, tensor by tensor.

    Of any formats, sharded or quantised; nothing is written. A tensor is equal when every value is the same
    bit for bit, and equal after cast when either side, encoded as the other is stored, becomes the other.
    Exit code 1 if anything else is found, or a configuration value that the model computes with differs.
    """
    one = SourceFlags(None, None, model.family, model.config, model.set, {}).open(a)
    other = SourceFlags(None, None, model.family, model.config_b or model.config, model.set, {}).open(b)
    with watching("diff", off=no_progress) as progress:
        report = crossdock.diff(one, other, progress=progress, **running)
    if as_json:
        show.print_json(report)
    else:
        show.facts([("A", f"{a} ({one.source.format})"), ("B", f"{b} ({other.source.format})")])
        show.say()
        _show(report)
    return 0 if report.same else 1


def _show(report: DiffReport) -> None:
    _show_tensors(report.tensors)
    _show_worst([diff for diff in report.tensors if diff.status == "different"])
    _show_unpaired([diff for diff in report.tensors if not diff.same and diff.status != "different"])
    _show_fields(report.fields)
    word = click.style("same", fg="green", bold=True) if report.same else click.style("DIFFERENT", fg="red", bold=True)
    took = f"{show.about(report.elements)} values compared in {show.duration(report.seconds)}"
    show.say(f"\n{word}  {took}")


def _show_tensors(tensors: Sequence[TensorDiff]) -> None:
    """A row per canonical tensor: how many layers have which status, how it is stored, and how far it lies apart."""
    rows = []
    for name in dict.fromkeys(diff.tensor for diff in tensors):
        alike = [diff for diff in tensors if diff.tensor == name]
        counts = [sum(diff.status == status for diff in alike) for status in EQUAL]
        other = len(alike) - sum(counts)
        stored = dict.fromkeys(
            diff.dtype_a if diff.dtype_a == diff.dtype_b else f"{diff.dtype_a or 'none'} | {diff.dtype_b or 'none'}"
            for diff in alike
        )
        figures = [diff.figures for diff in alike if diff.figures]
        total = sum(figures[1:], figures[0]) if figures else None
        cells = (str(count) if count else "" for count in (*counts, other))
        rows.append((name, *cells, *_figures(total), ", ".join(stored)))
    show.table(("tensor", "equal", "after cast", "different", "largest", "rms", "relative", "A | B"), rows, "<>>>>>><")


def _figures(figures: Any) -> tuple[str, str, str]:
    if figures is None:
        return "", "", ""
    return f"{figures.max_abs:.3g}", f"{figures.rms:.3g}", f"{100 * figures.relative_rms:.3g}%"


def _show_worst(different: Sequence[TensorDiff]) -> None:
    if not different:
        return
    show.heading(f"Different values in {show.counted(len(different), 'tensor')}")
    worst = sorted(different, key=lambda diff: -diff.figures.relative_rms if diff.figures else 0.0)
    rows = [(diff.name, f"{diff.different:,} values", *_figures(diff.figures)) for diff in worst[:MOST]]
    show.table(("", "", "largest", "rms", "relative"), rows, "<>>>>")
    if len(worst) > MOST:
        show.say(f"  … {len(worst) - MOST} more; --json lists all")


def _show_unpaired(unpaired: Sequence[TensorDiff]) -> None:
    if not unpaired:
        return
    show.heading("Without a counterpart")
    rows = []
    for diff in unpaired[:MOST]:
        shapes = " | ".join(show.shape(shape) for shape in (diff.shape_a, diff.shape_b) if shape)
        rows.append((diff.name, diff.status, shapes))
    show.table((), rows, "<<<")
    if len(unpaired) > MOST:
        show.say(f"  … {len(unpaired) - MOST} more; --json lists all")


def _show_fields(fields: Sequence[FieldDiff]) -> None:
    for title, label in (("Configuration that differs", False), ("Differs without effect on values", True)):
        found = [diff for diff in fields if diff.label == label]
        if found:
            show.heading(title)
            rows = [
                (diff.field if side == "A" else "", side, str(value), origin)
                for diff in found
                for side, value, origin in (("A", diff.a, diff.origin_a), ("B", diff.b, diff.origin_b))
            ]
            show.table((), rows, "<<<<")
