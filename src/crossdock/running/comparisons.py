"""What comparing logits and token ids reports. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from crossdock.errors import Problem


@dataclass(frozen=True, slots=True)
class PositionCheck:
    """The logits behind one token: how far the output's lie from the source's.

    distance       root mean square difference, over the source's standard deviation
    kl             divergence of the output's distribution from the source's, in nats
    window, index  which window of the text, and the token's place in it
    best_*         the token with the largest logit; top5: how many of the source's best five are the output's
    loss_*         -log of the probability of the token that follows; None for a window's last token
    engine_distance  of the engine's logits from the reference forward's of the same weights, where that was computed
    """

    window: int
    index: int
    token: int
    max_abs: float
    distance: float
    kl: float
    best_source: int
    best_output: int
    top5: int
    loss_source: float | None
    loss_output: float | None
    engine_distance: float | None = None


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What an engine computes of the output, against the reference forward of the same weights, by the source's config.

    limit_*  the one that counts; why: what it comes from
    """

    max_abs: float
    distance: float
    limit_max_abs: float | None
    limit_distance: float | None
    why: str


@dataclass(frozen=True)
class LogitsReport:
    """Logits of an output against those of its source. Figures are NaN when nothing could be compared.

    engine    what computed the output's: "reference" or an engine's name; reader: what made token ids of the text
    total_tokens     tokens of the text, of which `tokens` were used, in `windows` that each start at position 0
    distance  root mean square difference, over the source's standard deviation; with experts, of the middle position
    kl        mean over positions, in nats; top1, top5: shares of 1
    failed    the limits that were broken, as sentences; why: what the limits come from; None: no such limit
    problems  why nothing, or not everything, was compared
    by_engine  the engine against the reference forward of the output's own weights, where rounded weights hide faults
    reference  what computed the source's: "reference", an engine's name or a file's
    """

    ok: bool
    engine: str
    reader: str
    tokens: int
    total_tokens: int
    windows: int
    why: str
    limit_max_abs: float | None
    limit_distance: float | None
    failed: tuple[str, ...]
    max_abs: float
    distance: float
    kl: float
    top1: float
    top5: float
    perplexity_source: float | None
    perplexity_output: float | None
    positions: tuple[PositionCheck, ...]
    problems: tuple[Problem, ...]
    seconds: float
    by_engine: EngineCheck | None = None
    reference: str = "reference"


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """A text that the two read differently."""

    text: str
    engine: tuple[int, ...]
    source: tuple[int, ...]


@dataclass(frozen=True)
class TokensReport:
    """Token ids of llama.cpp against the source's own, over `texts` texts. reader: the library and file of the source.

    ties  texts that a Unigram model can cut in two equally likely ways, and the two libraries took one each
    """

    ok: bool
    texts: int
    reader: str
    different: tuple[TokenDifference, ...]
    ties: int = 0
