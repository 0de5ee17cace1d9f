"""What a verification comes to: its parts together, what was held against what, and what nothing was held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crossdock.errors import UsageError
from crossdock.running.checked import ABSENT, MANIFEST, Checked
from crossdock.running.comparisons import LogitsReport, TokensReport
from crossdock.running.verify import VerifyReport


def sourceless(reference: str | None, *, tokens: bool, report: bool) -> None:
    """Raises UsageError where an output without its source is to be held against anything but a file of logits."""
    if reference is None or not reference.endswith(".npy"):
        raise UsageError(
            "verify requires a source or a reference to compare with",
            fix="--against SRC, with what it was made from; or --logits tokens.npy --reference logits.npy",
        )
    if tokens or report:
        raise UsageError("--tokens and --report need the source", fix="--against SRC")


def judged(
    files: VerifyReport,
    unproven: Sequence[str],
    logits: LogitsReport | None,
    tokens: TokensReport | None,
    *,
    strict: bool,
) -> VerifyReport:
    """The outcome of comparing files, logits and token ids as one.

    unproven  what the user said against the source's configuration: proven where something that does not read the
              source through crossdock computed the same logits
    """
    checked = files.checked
    if tokens is not None:
        checked = replace(checked, token_ids="llama.cpp")
    elif checked.tokenizer in ("bytes", MANIFEST):
        checked = replace(checked, token_ids="the same files")
    elif checked.tokenizer == ABSENT:
        checked = replace(checked, token_ids=ABSENT)
    independent = False
    if logits is not None and logits.positions:
        checked = replace(checked, logits=f"output by {_by(logits.engine)}, source by {_by(logits.reference)}")
        independent = logits.ok and logits.reference != "reference"
    left = () if independent else tuple(unproven)
    missing = _missing(checked)
    ok = files.ok and (logits is None or logits.ok) and (tokens is None or tokens.ok)
    ok = ok and not (strict and (missing or left))
    return replace(files, ok=ok, logits=logits, tokens=tokens, checked=checked, unchecked=missing, unproven=left)


def _missing(checked: Checked) -> tuple[str, ...]:
    return tuple(checked.unchecked())


def _by(name: str) -> str:
    return "the reference forward" if name == "reference" else name
