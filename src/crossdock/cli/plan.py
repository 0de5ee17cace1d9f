"""`crossdock plan`: what an export would do; also shown by `export --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossdock import summary
from crossdock.cli import show
from crossdock.cli.options import (
    PATH,
    Parsed,
    SourceFlags,
    TargetFlags,
    json_option,
    running_options,
    source_options,
    target_options,
)
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock.formats.target import RankFile
    from crossdock.planning.plan import Plan
    from crossdock.running.memory import Need

FILES = 12  # target files listed before the rest is only counted


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock plan runs/iter_0010000 --to gguf -q q8_0 --tokenizer tok/",
        "crossdock plan runs/iter_0010000 --to hf --dtype bf16 --max-shard-size 2GiB",
        "crossdock plan model-hf/ --to gguf --save plan.jsonl",
    ),
)
@click.argument("src", type=PATH)
@target_options
@source_options
@running_options
@click.option("-o", "--output", type=Parsed(str), metavar="OUT", help="Also check that OUT can be written.")
@click.option("--save", type=PATH, metavar="FILE", help="Write the whole plan as JSON lines.")
@json_option
def plan(
    src: Path,
    target: TargetFlags,
    source: SourceFlags,
    running: Mapping[str, Any],
    output: str | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Show what exporting SRC would do. Reads headers only and writes nothing.

    Every error that can be known before copying is found here.
    """
    planned, need = summary.planned(lambda: target.plan(source.open(src)), running)
    if output is not None:
        summary.check_place(planned, output)
    if save is not None:
        summary.save_plan(planned, save)
    show_plan(planned, need, as_json=as_json)


def show_plan(plan: Plan, need: Need, *, as_json: bool) -> None:
    """Print a plan's summary, with what running it takes."""
    if as_json:
        show.print_json(_record(plan, need))
        return
    show.say(f"{plan.source_format} → {plan.target_format}   {show.clean(plan.source_root)}")
    show.facts(
        [
            ("reads", _files(len(plan.sources), sum(file.size for file in plan.sources))),
            ("writes", _files(len(plan.files), plan.nbytes)),
            ("tensors", f"{len(plan.tensors):,} from {len(plan.extents):,} pieces"),
            ("parameters", show.number(plan.parameters)),
            ("memory", f"at most {show.memory(_up(need.peak))}: {_parts(need)}"),
            ("plan", plan.digest[:16]),
        ]
    )
    ranks = {rank.name for rank in plan.ranks}
    show.heading("Files")
    sizes = [
        (file.name, show.nbytes(file.size), "copied" if file.copy_of else "")
        for file in plan.files
        if file.name not in ranks
    ]
    if len(sizes) > FILES:
        sizes[FILES - 1 :] = [(f"… {len(sizes) - FILES + 1} more", "", "")]
    show.table((), sizes, "<><")
    if plan.ranks:
        show.heading("Ranks")
        head = ("file", "tensors", "bytes", "layers", "embedding rows", "head rows", "replicated KV heads")
        show.table(head, [_rank(rank) for rank in plan.ranks], "<>><>>>")
    show.heading("Types")
    show.table(("source", "target", "tensors", "parameters", "bytes"), _types(plan), "<<>>>")
    show_warnings(plan.warnings)
    show_left_out(_tensors_left_out(plan), plan.described.ignored)


def _up(size: int) -> int:
    """Rounded up to whole MiB."""
    return -(-size >> 20) << 20


def _parts(need: Need) -> str:
    buffers = f"{show.memory(_up(need.taken))} for {show.counted(need.workers, 'worker')}"
    return f"{show.memory(_up(need.planning))} for planning, then {buffers}"


def show_warnings(warnings: Iterable[str]) -> None:
    """Each warning on a line of its own."""
    if shown := list(warnings):
        show.heading("Warnings")
        for text in shown:
            show.say(f"  {click.style('!', fg='yellow')} {show.clean(text)}")


def show_left_out(tensors: Mapping[str, str], keys: Mapping[str, str], *, every_key: bool = False) -> None:
    """What is in the source and not in the target: tensors by reason, keys in all; `inspect` gives each a reason."""
    if tensors:
        show.heading("Tensors left out")
        show.table(("why", "which"), show.reasons(tensors), "<<")
    if not keys:
        return
    if every_key:
        show.heading("Keys left out")
        show.table(("why", "which"), show.reasons(keys), "<<")
    else:
        say = f"{show.counted(len(keys), 'configuration key')} left out, for a reason each: see inspect, or --json"
        show.say(f"\n{say}")


def _tensors_left_out(plan: Plan) -> dict[str, str]:
    """`Plan.ignored` without the configuration keys."""
    return {name: why for name, why in plan.ignored.items() if name not in plan.described.ignored}


def _rank(rank: RankFile) -> tuple[str, ...]:
    low, high = rank.layers
    counts = (rank.vocab_rows, rank.head_rows, rank.replicated_kv_heads)
    layers = f"{low} to {high - 1}" if high - low > 1 else str(low)
    return (rank.name, show.number(rank.tensors), show.nbytes(rank.nbytes), layers, *map(show.number, counts))


def _files(count: int, size: int) -> str:
    return f"{show.counted(count, 'file')}, {show.nbytes(size)}"


def _types(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    """Rows of source type, target type, tensors, parameters, bytes."""
    sums: dict[tuple[str, str], list[int]] = {}
    for tensor in plan.tensors:
        stored = dict.fromkeys(plan.extents[move.extent].dtype for move in tensor.moves)
        made = " + ".join(stored) or ("padding" if tensor.data is None else "computed")
        total = sums.setdefault((made, tensor.dtype), [0, 0, 0])
        for i, more in enumerate((1, prod(tensor.shape), tensor.nbytes)):
            total[i] += more
    rows = sorted(sums.items(), key=lambda item: -item[1][2])
    return [(a, b, show.number(n), show.number(p), show.nbytes(size)) for (a, b), (n, p, size) in rows]


def _record(plan: Plan, need: Need) -> dict[str, Any]:
    return {
        "source_format": plan.source_format,
        "source": plan.source_root,
        "target_format": plan.target_format,
        "digest": plan.digest,
        "nbytes": plan.nbytes,
        "memory": need.buffers,
        "planning": need.planning,
        "peak": need.peak,
        "workers": need.workers,
        "sources": [{"path": file.path, "nbytes": file.size} for file in plan.sources],
        "files": [{"name": f.name, "nbytes": f.size, "copied": f.copy_of is not None} for f in plan.files],
        "tensors": [
            {
                "name": tensor.name,
                "file": plan.files[tensor.file].name,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "nbytes": tensor.nbytes,
                "sources": tensor.sources,
            }
            for tensor in plan.tensors
        ],
        "config": {
            name: {"value": value, "origin": plan.described.origins.get(name, "")}
            for name, value in plan.described.config.as_dict().items()
        },
        "settings": plan.settings,
        "ranks": plan.ranks,
        "warnings": plan.warnings,
        "ignored": {"tensors": _tensors_left_out(plan), "keys": plan.described.ignored},
    }
