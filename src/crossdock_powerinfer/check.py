"""Is an index what its statistics and its model ask for? PowerInfer itself checks neither values nor agreement.

Nothing is written. The layer mix-up looked for is the official module's: it sorts file names as text, so that
`activation_10` comes before `activation_2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossdock.errors import Problem
from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.split import LayerShare, check_widths, shares
from crossdock_powerinfer.statistics import Statistics, read_statistics
from crossdock_powerinfer.weights import GRAIN, read_weights


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What was found.

    coverage   share of all activations on the GPU, None when the index is too broken to say
    nbytes     VRAM of the selection, None without the model
    mixed_up   the layers hold the hottest neurons of other layers, as the official module's text order gives them
    """

    path: Path
    layers: tuple[LayerShare, ...]
    vram_capacity: int
    coverage: float | None
    nbytes: int | None
    mixed_up: bool
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def check(path: Path, against: Path, model: Path | None = None) -> IndexReport:
    """Hold an index against statistics and, if given, a model. Raises what reading them raises (FormatError, ...)."""
    index = gpuidx.read(path)
    statistics = read_statistics(against)
    weights = None if model is None else read_weights(model)
    check_widths(statistics, [len(flags) for flags in index.flags], str(path))
    if weights is not None:
        check_widths(statistics, weights.widths, str(weights.path))
    problems = gpuidx.disagreements(index)
    if problems:
        return IndexReport(path, (), index.vram_capacity, None, None, False, tuple(problems), ())
    notes: list[str] = []
    nbytes = None
    sizes: list[int] | None = None
    if weights is not None:
        sizes = [n * size for n, size in zip(index.neurons, weights.neurons, strict=True)]
        nbytes = sum(sizes)
        if nbytes > index.vram_capacity:
            problems.append(
                Problem(
                    "the selection needs more VRAM than the index says",
                    str(path),
                    f"at most {index.vram_capacity:,} bytes",
                    f"{nbytes:,}",
                    fix="create the index again with --model",
                )
            )
        elif nbytes < 0.95 * index.vram_capacity:
            share = 100 * nbytes / index.vram_capacity
            notes.append(f"only {share:.0f}% of the {index.vram_capacity:,} bytes that the index asks for are used")
    layers = shares(statistics, index, sizes)
    mixed_up = _mixed_up(statistics, index)
    if mixed_up:
        problems.append(
            Problem(
                "layers hold the hottest neurons of other layers",
                str(path),
                cause="made by PowerInfer's own module, which sorts activation_10 before activation_2",
                fix="create the index again with crossdock split",
            )
        )
    else:
        problems += _colder(statistics, index)
    problems += _off_grain(index, GRAIN if weights is None else weights.grain)
    covered = sum(int(counts[bucket].sum()) for counts, bucket in zip(statistics.counts, index.buckets, strict=True))
    coverage = covered / statistics.total if statistics.total else 0.0
    return IndexReport(path, layers, index.vram_capacity, coverage, nbytes, mixed_up, tuple(problems), tuple(notes))


def _off_grain(index: gpuidx.GpuIndex, grain: int) -> list[Problem]:
    """PowerInfer's kernels for quantised weights visit whole groups of 256 rows only, those for F16 groups of 32."""
    off = [layer for layer, n in enumerate(index.neurons) if n % grain]
    if not off:
        return []
    return [
        Problem(
            f"{len(off):,} layers have a number of neurons that is not a multiple of {grain}",
            f"layer {off[0]}" + (" and others" if off[1:] else ""),
            f"a multiple of {grain}",
            f"{index.neurons[off[0]]:,}",
            "PowerInfer's kernels silently leave out the rest of a group",
            f"create the index again with --grain {grain}",
        )
    ]


def _mixed_up(statistics: Statistics, index: gpuidx.GpuIndex) -> bool:
    """Every layer is right for the statistics in text order, and not every one in the order of numbers."""
    count = len(statistics.counts)
    as_text = sorted(range(count), key=str)
    if as_text == list(range(count)) or len(set(statistics.widths)) > 1:
        return False
    right = all(_cold(statistics, index, layer, layer) == 0 for layer in range(count))
    return not right and all(_cold(statistics, index, layer, of) == 0 for layer, of in enumerate(as_text))


def _colder(statistics: Statistics, index: gpuidx.GpuIndex) -> list[Problem]:
    """Layers whose selection leaves out hotter neurons."""
    out = []
    for layer in range(len(statistics.counts)):
        if cold := _cold(statistics, index, layer, layer):
            out.append(
                Problem(
                    f"{cold:,} neurons on the GPU are colder than the hottest ones left on the CPU",
                    f"layer {layer}",
                    cause="made from other statistics",
                )
            )
    return out


def _cold(statistics: Statistics, index: gpuidx.GpuIndex, layer: int, of: int) -> int:
    """Neurons selected in `layer` that the same number of hottest neurons of layer `of`'s counts leaves out."""
    counts, bucket = statistics.counts[of], index.buckets[layer]
    if not len(bucket) or len(bucket) == len(counts):
        return 0
    left = counts[index.flags[layer] == 0]
    return int((counts[bucket] < left.max()).sum())
