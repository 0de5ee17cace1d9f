"""`crossdock split`: choose the neurons that PowerInfer keeps on the GPU, and write them as an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from crossdock.cli import show
from crossdock.cli.options import PATH, json_option, options_for
from crossdock.cli.sections import Sectioned, examples
from crossdock.io.atomic import write_whole
from crossdock.options import option, path, positive, size, whole
from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.chart import chart
from crossdock_powerinfer.split import Split, curve
from crossdock_powerinfer.split import split as choose
from crossdock_powerinfer.statistics import Statistics, read_statistics
from crossdock_powerinfer.weights import ModelWeights, read_weights


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How much of the GPU there is, and how finely the neurons are chosen."""

    capacity: int | None = option(None, whole, "Neurons on the GPU, at most.", "N")
    vram_budget: int | None = option(None, size, "PowerInfer's VRAM budget, as 8GiB. Needs --model.", "SIZE")
    model: Path | None = option(
        None, path, "The PowerInfer model: true bytes of its neurons.", "GGUF", heading="Source"
    )
    ctx: int = option("512", positive, "Context, for the KV cache.", "N", heading="Source")
    vram_capacity: int | None = option(
        None, size, "VRAM that the index asks for.  [default: what the selection needs]", "SIZE"
    )
    threshold: int = option("0", whole, "Minimum neurons for any layer that gets some.", "N")
    grain: int = option("256", positive, "Neurons per group.", "N")


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock split activation/ --vram-budget 8GiB --model model.gguf -o model.gguf.generated.gpuidx",
        "crossdock split activation/ --capacity 120000 -o model.gguf.generated.gpuidx",
        "crossdock split activation/ --capacity 120000 --plot split.svg -o out.gpuidx",
    ),
)
@click.argument("activations", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, metavar="OUT", help="The index to write.")
@options_for(SplitOptions, "asked")
@click.option("--plot", type=PATH, metavar="SVG", help="Also draw coverage and layers.")
@json_option
def split(
    activations: Path,
    output: Path,
    asked: SplitOptions,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Choose the FFN neurons that PowerInfer keeps on the GPU.

    ACTIVATIONS is a folder of activation_0.pt, activation_1.pt, ...: how often each neuron was active. The
    choice covers the most activations that the budget allows, and says how that is known.
    """
    if (asked.capacity is None) == (asked.vram_budget is None):
        raise click.UsageError("either --capacity or --vram-budget with --model is required")
    if asked.vram_budget is not None and asked.model is None:
        raise click.UsageError("--vram-budget needs --model: a neuron's bytes depend on the model's tensors")
    if asked.model is not None and asked.vram_capacity is not None:
        raise click.UsageError("--vram-capacity is for indexes made without --model")
    statistics = read_statistics(activations)
    weights = None if asked.model is None else read_weights(asked.model)
    chosen = choose(
        statistics,
        capacity=asked.capacity,
        vram=None if asked.vram_budget is None or weights is None else weights.left(asked.vram_budget, asked.ctx),
        weights=weights,
        threshold=asked.threshold,
        grain=asked.grain,
        vram_capacity=asked.vram_capacity or 0,
    )
    written = gpuidx.write(output, chosen.index)
    if plot is not None:
        _draw(plot, chosen, statistics, weights, output.name)
    if as_json:
        show.print_json(_record(chosen, output, written))
    else:
        _show(chosen, output, written)
    if weights is None and asked.vram_capacity is None:
        show.note("note: without --model or --vram-capacity, PowerInfer will take this index for any VRAM it has left")
    return 0


def _draw(plot: Path, chosen: Split, statistics: Statistics, weights: ModelWeights | None, title: str) -> None:
    costs = weights.neurons if weights is not None and chosen.unit == "bytes" else [1] * len(chosen.layers)
    text = chart(chosen, curve(statistics, chosen.grain, costs), title)
    write_whole(plot, [text.encode()], "picture")


def _show(chosen: Split, output: Path, written: int) -> None:
    show_layers(chosen.layers)
    show.say()
    spent, noun = (show.nbytes, "") if chosen.unit == "bytes" else (show.number, " neurons")
    share = f" ({100 * chosen.used / chosen.budget:.1f}%)" if chosen.budget else ""
    show.facts(
        [
            ("covered", f"{100 * chosen.coverage:.2f}% of all activations"),
            ("neurons", f"{sum(chosen.index.neurons):,}"),
            (
                "used",
                f"{spent(chosen.used)} of {spent(chosen.budget)}{noun}{share}",
            ),
            ("VRAM", "" if chosen.nbytes is None else f"{show.nbytes(chosen.nbytes)} ({chosen.nbytes:,} bytes)"),
            ("choice", chosen.certificate),
            ("counts", "" if chosen.exact else "fractions finer than int64 holds were rounded"),
            ("written", f"{output}, {show.nbytes(written)}"),
        ]
    )


def show_layers(layers: Any) -> None:
    rows = [
        (
            str(number),
            show.number(layer.neurons),
            show.number(layer.width),
            f"{100 * layer.coverage:.2f}%",
            "" if layer.nbytes is None else show.nbytes(layer.nbytes),
        )
        for number, layer in enumerate(layers)
    ]
    show.table(("layer", "on GPU", "of", "covered", "bytes"), rows, ">>>>>")


def _record(chosen: Split, output: Path, written: int) -> dict[str, Any]:
    return {
        "output": output,
        "written": written,
        "layers": chosen.layers,
        "neurons": sum(chosen.index.neurons),
        "coverage": chosen.coverage,
        "objective": chosen.objective / (1 << chosen.scale),
        "bound": chosen.bound / (1 << chosen.scale),
        "gap": chosen.gap,
        "certificate": chosen.certificate,
        "unit": chosen.unit,
        "budget": chosen.budget,
        "used": chosen.used,
        "nbytes": chosen.nbytes,
        "vram_capacity": chosen.index.vram_capacity,
        "grain": chosen.grain,
        "exact": chosen.exact,
    }
