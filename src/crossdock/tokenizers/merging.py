"""Byte-pair merging of a single word, to learn whether a token's own text merges back to that token.

Not a tokenizer: it works on words that are already spelt in the vocabulary's alphabet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# Merging is quadratic in the word. Real tokens are shorter, save runs of one character, and all 128,000 of
# Llama 3 take some millions of look-ups; what would take more is left unproven.
LONGEST = 512
MOST_WORK = 20_000_000


def unreached(texts: Iterable[str], merges: Sequence[str], most_work: int = MOST_WORK) -> list[str]:
    """The texts that merging does not turn into one symbol, or for which that is too much work to find out.

    merges  "left right" in rank order
    """
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    work, found = 0, []
    for text in texts:
        work += len(text) ** 2 // 2
        if len(text) > LONGEST or work > most_work or len(merge(text, ranks)) > 1:
            found.append(text)
    return found


def merge(word: str, ranks: Mapping[str, int]) -> list[str]:
    """The symbols that `word` ends up as: the lowest-ranked pair is merged first, the leftmost of equals."""
    symbols = list(word)
    while len(symbols) > 1:
        found = [(rank, at) for at in range(len(symbols) - 1) if (rank := ranks.get(_pair(symbols, at))) is not None]
        if not found:
            return symbols
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def _pair(symbols: Sequence[str], at: int) -> str:
    return f"{symbols[at]} {symbols[at + 1]}"
