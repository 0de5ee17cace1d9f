"""The part of the page that is about logits: plots of every position, and a strip of which agree on the best token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crossdock.proof.report.plots import Dot, scatter, strip, text
from crossdock.running.comparisons import LogitsReport, PositionCheck
from crossdock.wording import counted

HEIGHT = 190.0


def logits_section(report: LogitsReport) -> str:
    """What both sides compute, position by position; a sentence when nothing could be compared."""
    by = "the reference forward" if report.engine == "reference" else report.engine
    used = counted(report.tokens, "token")
    if report.total_tokens > report.tokens:
        used = f"The first {report.tokens:,} of {report.total_tokens:,} tokens"
    windows = f" in {report.windows} windows" if report.windows > 1 else ""
    read = f", read by {report.reader}" if report.reader else ""
    lead = f"{used}{windows}{read}. The source goes through the reference forward, the output through {by}."
    head = f'<h2>What both compute</h2><p class="lead">{text(lead)} Allowed: {text(report.why)}.</p>'
    if not report.positions:
        return head + "<p>Nothing could be compared.</p>"
    places = report.positions
    ticks = [(x, str(x) if x else "position 0") for x in range(0, len(places), _step(len(places)))]
    span = len(places) - 1
    absolute = report.limit_distance is None
    first = [Dot(x, one.max_abs if absolute else one.distance, _says(one)) for x, one in enumerate(places)]
    name = "largest difference of a logit" if absolute else "relative distance of the logits"
    over = f"; largest {report.max_abs:.3g}" if absolute else f"; over all {100 * report.distance:.3g}%"
    line = None
    if report.limit_distance is not None:
        line = report.limit_distance, f"limit over all: {100 * report.limit_distance:.3g}%"
    elif report.limit_max_abs is not None:
        line = report.limit_max_abs, f"limit: {report.limit_max_abs:.3g}"
    second = [Dot(x, one.kl, _says(one)) for x, one in enumerate(places)]
    cells = [(one.best_source == one.best_output, _says(one)) for one in places]
    return (
        f"{head}<figure><figcaption><b>{name}</b> at each position{over}</figcaption>"
        f"{scatter(first, {}, span, ticks, name=name, percent=not absolute, limit=line, height=HEIGHT)}</figure>"
        f"{_by_engine(report, span, ticks)}"
        "<figure><figcaption><b>KL divergence</b> of the output from the source, nats a token; "
        f"mean {report.kl:.3g}</figcaption>{scatter(second, {}, span, ticks, name='KL divergence', height=HEIGHT)}"
        "</figure>"
        f"<figure><figcaption><b>best next token</b> the same at {100 * report.top1:.4g}% of positions (red: another); "
        f"of the best five {100 * report.top5:.4g}%</figcaption>{strip(cells, name='Agreement on the best token')}"
        "</figure>"
    )


def _by_engine(report: LogitsReport, span: float, ticks: Sequence[tuple[float, str]]) -> str:
    """The engine's own part in the distance, where it was computed."""
    found = report.by_engine
    if found is None:
        return ""
    dots = [Dot(x, one.engine_distance or 0.0, _says(one)) for x, one in enumerate(report.positions)]
    line = None
    over = f"largest difference {found.max_abs:.3g}, allowed {found.limit_max_abs or 0:.3g}"
    if found.limit_distance is not None:
        line = found.limit_distance, f"limit over all: {100 * found.limit_distance:.3g}%"
        over = f"over all {100 * found.distance:.3g}%"
    name = f"{text(report.engine)}'s own part"
    return (
        f"<figure><figcaption><b>{name}</b> distance from the reference forward of the same weights; {over}; allowed: "
        f"{text(found.why)}</figcaption>"
        f"{scatter(dots, {}, span, ticks, name=name, percent=True, limit=line, height=HEIGHT)}</figure>"
    )


def _step(count: int) -> int:
    """A round distance between ticks."""
    rough = max(count / 12, 1)
    scale = 10 ** math.floor(math.log10(rough))
    return int(next(n * scale for n in (1, 2, 5, 10) if n * scale >= rough))


def _says(one: PositionCheck) -> str:
    best = f"best {one.best_source}" + ("" if one.best_source == one.best_output else f", output {one.best_output}")
    return (
        f"window {one.window}, position {one.index}, token {one.token}: largest {one.max_abs:.3g}, "
        f"KL {one.kl:.3g}, {best}"
    )
