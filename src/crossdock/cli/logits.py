"""How `verify` shows logits: totals, a sentence on what was allowed, and the positions that lie furthest apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from crossdock.cli import show

if TYPE_CHECKING:
    from crossdock.running.comparisons import EngineCheck, LogitsReport

WORST = 5  # positions listed


def show_logits(report: LogitsReport) -> None:
    """The comparison; the problems of one that could not be made."""
    source, output = (
        "the reference forward" if name == "reference" else show.clean(name)
        for name in (report.reference, report.engine)
    )
    show.heading(f"Logits: source by {source}, output by {output}")
    used = show.counted(report.tokens, "token")
    if report.total_tokens > report.tokens:
        used = f"the first {report.tokens:,} of {report.total_tokens:,} tokens"
    pairs = [("text", used + (f" in {report.windows} windows" if report.windows > 1 else ""))]
    pairs.append(("read by", show.clean(report.reader)))
    if report.positions:
        pairs += _figures(report)
    show.facts(pairs)
    if report.positions and report.kl > 0:
        show.say()
        worst = sorted(report.positions, key=lambda one: -one.kl if math.isfinite(one.kl) else -math.inf)[:WORST]
        rows = [
            (f"{one.window}:{one.index}", f"{one.token}", f"{one.max_abs:.3g}", f"{one.kl:.3g}",
             f"{one.best_source}" + ("" if one.best_source == one.best_output else f" → {one.best_output}"))
            for one in worst
        ]  # fmt: skip
        show.table(("worst positions", "token", "largest", "KL", "best next"), rows, "<>>><")
    for problem in report.problems:
        for line in problem.lines():
            show.say(f"  {show.clean(line)}")
    for sentence in report.failed if report.positions else ():
        show.say(click.style(f"  {sentence}", fg="red"))


def _figures(report: LogitsReport) -> list[tuple[str, str]]:
    if report.limit_distance is None:
        allowed = (f"  (at most {report.limit_max_abs:.3g}: {report.why})", "")
    else:
        allowed = ("", f"  (at most {report.limit_distance:.3g}: {report.why})")
    own = report.by_engine
    pairs = [
        ("largest difference", f"{report.max_abs:.3g}{allowed[0]}"),
        ("relative distance", f"{report.distance:.3g}{allowed[1]}"),
        *([] if own is None else [("engine's own part", _own(own))]),
        ("KL divergence", f"{report.kl:.3g} nats a token"),
        ("agreement", f"best token {100 * report.top1:.4g}%, best five {100 * report.top5:.4g}%"),
    ]
    if report.perplexity_source is not None and report.perplexity_output is not None:
        pairs.append(("perplexity", f"source {report.perplexity_source:.6g}, output {report.perplexity_output:.6g}"))
    return pairs


def _own(found: EngineCheck) -> str:
    if found.limit_distance is None:
        return f"{found.max_abs:.3g} at most  (allowed {found.limit_max_abs:.3g}: {found.why})"
    return f"{found.distance:.3g} relative  (at most {found.limit_distance:.3g}: {found.why})"
