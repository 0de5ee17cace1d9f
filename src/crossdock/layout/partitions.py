"""How axes are cut over ranks where the cut is not even: the one type for it."""

from __future__ import annotations

from collections.abc import Mapping

Rank = tuple[tuple[str, int], ...]  # (("pp", 1), ("vpp", 0)): what a rank is called along each way of cutting
RankRanges = Mapping[Rank, tuple[int, int]]  # rank -> its first index, and beyond its last
Partitions = Mapping[str, RankRanges]  # axis -> its ranges
