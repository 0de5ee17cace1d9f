"""Byte-pair merging of a single word, to learn whether a token's own text merges back to that token.

Not a tokenizer: it works on words that are already spelt in the vocabulary's alphabet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

# Merging is quadratic in the word; real tokens are shorter than this, save runs of one character.
LONGEST = 512


def unreached(texts: Iterable[str], merges: Sequence[str]) -> list[str]:
    """The texts that merging does not turn into one symbol. Texts longer than 512 characters count as
    unreached.

    merges  "left right" in rank order
    """
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    return [text for text in texts if len(text) > LONGEST or len(merge(text, ranks)) > 1]


def merge(word: str, ranks: Mapping[str, int]) -> list[str]:
    """The symbols that `word` ends up as: the lowest-ranked pair is merged first, the leftmost of equals."""
    symbols = list(word)
    while len(symbols) > 1:
        found = [
            (rank, at)
            for at in range(len(symbols) - 1)
            if (rank := ranks.get(_pair(symbols, at))) is not None
        ]
        if not found:
            return symbols
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def _pair(symbols: Sequence[str], at: int) -> str:
    return f"{symbols[at]} {symbols[at + 1]}"
