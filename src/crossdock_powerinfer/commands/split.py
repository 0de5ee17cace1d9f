"""`crossdock split`: choose the neurons that PowerInfer keeps on the GPU, and write them as an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossdock.cli import show
from crossdock.cli.options import PATH, POSITIVE, SIZE, WHOLE, json_option
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock_powerinfer.split import Split
    from crossdock_powerinfer.statistics import Statistics
    from crossdock_powerinfer.weights import ModelWeights


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
@click.option("--capacity", type=WHOLE, metavar="N", help="Neurons on the GPU, at most.")
@click.option("--vram-budget", type=SIZE, metavar="SIZE", help="PowerInfer's VRAM budget, as 8GiB. Needs --model.")
@click.option("--model", type=PATH, metavar="GGUF", help="The PowerInfer model: true bytes of its neurons.")
@click.option("--ctx", type=POSITIVE, default="512", show_default=True, metavar="N", help="Context, for the KV cache.")
@click.option(
    "--vram-capacity",
    type=SIZE,
    metavar="SIZE",
    help="VRAM that the index asks for.  [default: what the selection needs]",
)
@click.option(
    "--threshold", type=WHOLE, default="0", show_default=True, metavar="N", help="Least neurons of a layer with any."
)
@click.option("--grain", type=POSITIVE, default="256", show_default=True, metavar="N", help="Neurons of a group.")
@click.option("--plot", type=PATH, metavar="SVG", help="Also draw coverage and layers.")
@json_option
def split(
    activations: Path,
    output: Path,
    capacity: int | None,
    vram_budget: int | None,
    model: Path | None,
    ctx: int,
    vram_capacity: int | None,
    threshold: int,
    grain: int,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Choose the FFN neurons that PowerInfer keeps on the GPU.

    ACTIVATIONS is a folder of activation_0.pt, activation_1.pt, ...: how often each neuron was active. The
    choice covers the most activations that the budget allows, and says how that is known.
    """
    if (capacity is None) == (vram_budget is None):
        raise click.UsageError("give either --capacity, or --vram-budget with --model")
    if vram_budget is not None and model is None:
        raise click.UsageError("--vram-budget needs --model: a neuron's bytes depend on the model's tensors")
    if model is not None and vram_capacity is not None:
        raise click.UsageError("--vram-capacity is for indexes made without --model")
    from crossdock_powerinfer import gpuidx
    from crossdock_powerinfer.split import split as choose
    from crossdock_powerinfer.statistics import read_statistics
    from crossdock_powerinfer.weights import read_weights

    statistics = read_statistics(activations)
    weights = None if model is None else read_weights(model)
    chosen = choose(
        statistics,
        capacity=capacity,
        vram=None if vram_budget is None or weights is None else weights.left(vram_budget, ctx),
        weights=weights,
        threshold=threshold,
        grain=grain,
        vram_capacity=vram_capacity or 0,
    )
    written = gpuidx.write(output, chosen.index)
    if plot is not None:
        _draw(plot, chosen, statistics, weights, output.name)
    if as_json:
        show.print_json(_record(chosen, output, written))
    else:
        _show(chosen, output, written)
    if weights is None and vram_capacity is None:
        show.note("note: without --model or --vram-capacity, PowerInfer will take this index for any VRAM it has left")
    return 0


def _draw(plot: Path, chosen: Split, statistics: Statistics, weights: ModelWeights | None, title: str) -> None:
    from crossdock.io.atomic import write_whole
    from crossdock_powerinfer.chart import chart
    from crossdock_powerinfer.split import curve

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
