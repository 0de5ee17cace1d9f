"""What `verify --logits` says of a file with a fault: how far its logits are from the source's, or why it has none."""

from __future__ import annotations

from pathlib import Path

import crossdock.delivery as delivery

TOKENS = tuple(range(3, 83))


def seen_in_logits(out: Path, source: Path, tokenizer: Path | None) -> str:
    """ "same logits" where they are within the limits."""
    report = delivery.verify(out, source, tokenizer=tokenizer, logits=TOKENS).logits
    assert report is not None
    if report.problems:
        return report.problems[0].what.partition(":")[0][:40]
    if report.ok:
        return "same logits"
    return f"{report.max_abs:.0e} off, KL {report.kl:.0e}"
