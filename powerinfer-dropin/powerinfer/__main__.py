"""`python3 -m powerinfer`: the arguments of PowerInfer's own module, the choice of crossdock.

Nothing goes to stdout, which PowerInfer's `main` shows as chat. Exit status 0 means that a whole file is in place.
Arguments and defaults from PowerInfer at d3ebd7c (powerinfer-py/powerinfer/__main__.py, and the call in llama.cpp,
which does not quote paths: a path with spaces arrives in several words).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crossdock.errors import CrossdockError, PlanError
from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.split import Split, split
from crossdock_powerinfer.statistics import Statistics, read_statistics
from crossdock_powerinfer.weights import ModelWeights, read_weights

SUFFIX = ".generated.gpuidx"
PATHS = ("--activation", "--output")
NUMBERS = ("--neuron", "--capacity", "--layer", "--vram-capacity", "--batch", "--threshold")


class Quiet(argparse.ArgumentParser):
    """A parser whose help goes to stderr, too."""

    def print_help(self, file: object = None) -> None:
        super().print_help(sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The official arguments with the official defaults."""
    out = Quiet(prog="python3 -m powerinfer", description="Make PowerInfer's GPU index of a model.", allow_abbrev=False)
    out.add_argument("--activation", required=True, help="folder of activation_0.pt, activation_1.pt, ...")
    out.add_argument("--output", required=True, help="the index to write")
    out.add_argument("--neuron", type=int, default=8192 * 4, help="neurons per layer")
    out.add_argument("--capacity", type=int, default=int(8192 * 4 * 32 * 0.1), help="neurons on the GPU")
    out.add_argument("--layer", type=int, default=59, help="layers")
    out.add_argument("--vram-capacity", type=int, default=0, help="bytes of VRAM left for neurons")
    out.add_argument("--batch", type=int, default=256, help="neurons of a group")
    out.add_argument("--threshold", type=int, default=0, help="least neurons of a layer that has any")
    return out


def rejoined(words: Sequence[str]) -> list[str]:
    """Paths whole again: what follows `--activation` or `--output`, up to the next option, is one path."""
    out: list[str] = []
    in_path = False
    for word in words:
        name = word.partition("=")[0]
        if name in PATHS or name in NUMBERS:
            in_path = name in PATHS
            out.append(word)
        elif in_path and out[-1] in PATHS:  # its first word, which argparse must not take for an option
            out.append(f"./{word}" if word.startswith("-") else word)
        elif in_path:
            out[-1] += f" {word}"
        else:
            out.append(word)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the index; 0 when it is in place."""
    given = parser().parse_args(rejoined(sys.argv[1:] if arguments is None else arguments))
    output = Path(given.output)
    try:
        statistics = read_statistics(Path(given.activation))
        _check(statistics, given.layer, given.neuron)
        weights = _model_beside(output, statistics)
        chosen = _choose(given, statistics, weights)
        gpuidx.write(output, chosen.index)
    except CrossdockError as error:
        print(f"powerinfer: {error.text()}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError) as error:
        print(f"powerinfer: {error}", file=sys.stderr)
        return 4
    used = "" if chosen.nbytes is None else f", {chosen.nbytes:,} of {given.vram_capacity:,} bytes"
    covered = f"{100 * chosen.coverage:.1f}% of activations"
    print(f"powerinfer: {output}: {sum(chosen.index.neurons):,} neurons, {covered}{used}", file=sys.stderr)
    return 0


def _choose(given: argparse.Namespace, statistics: Statistics, weights: ModelWeights | None) -> Split:
    """By the bytes left when model and budget are known, else by the number of neurons that PowerInfer asks for."""
    by_bytes = weights is not None and given.vram_capacity > 0
    return split(
        statistics,
        capacity=None if by_bytes else max(given.capacity, 0),
        vram=given.vram_capacity if by_bytes else None,
        weights=weights,
        threshold=max(given.threshold, 0),
        grain=given.batch,
        vram_capacity=max(given.vram_capacity, 0),
    )


def _check(statistics: Statistics, layers: int, neurons: int) -> None:
    """The statistics are of the model that PowerInfer has loaded."""
    widths = sorted(set(statistics.widths))
    if len(statistics.counts) != layers or widths != [neurons]:
        raise PlanError(
            "the activation statistics are not of this model",
            expected=f"{layers} layers of {neurons:,} neurons",
            got=f"{len(statistics.counts)} layers of {', '.join(f'{width:,}' for width in widths)}",
        )


def _model_beside(output: Path, statistics: Statistics) -> ModelWeights | None:
    """The model that the index's name says, if it is there and can be read."""
    model = output.with_name(output.name.removesuffix(SUFFIX))
    if model == output or not model.is_file():
        return None
    try:
        weights = read_weights(model)
    except CrossdockError as error:
        print(f"powerinfer: sizes not taken from the model: {error.text()}", file=sys.stderr)
        return None
    return weights if weights.widths == statistics.widths else None


if __name__ == "__main__":
    sys.exit(main())
