"""Masters as they are found: boxes of each weight, put together where they cover it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crossdock.errors import FormatError
from crossdock.formats.dcp.tiling import tiling_error
from crossdock.formats.megatron.masters.matching import Found, Key, Place
from crossdock.formats.megatron.masters.samples import placed
from crossdock.formats.stored import Extent, Masters, SourceFile, StoredTensor
from crossdock.unpickle import printable


class Collected:
    """What was found so far of `weights`. Where several ranks hold the same box, the first counts.

    places   the boxes that vectors hold; vectors: how many there were
    """

    def __init__(self, weights: Mapping[Key, StoredTensor]) -> None:
        self._weights = weights
        self._boxes: dict[Key, dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Extent, ...]]] = {}
        self._ambiguous: set[str] = set()
        self.places: set[Place] = set()
        self.vectors = 0

    def add(self, key: Key, origin: tuple[int, ...], shape: tuple[int, ...], extents: Sequence[Extent]) -> None:
        """A box of weight `key` and where its master lies."""
        self._boxes.setdefault(key, {}).setdefault((origin, shape), tuple(extents))

    def take(self, found: Sequence[Found], extents: Sequence[Extent]) -> None:
        """What `matching.walk` found in a vector that `extents` hold."""
        self.vectors += 1
        for start, weight, ambiguous in found:
            self.places.add(weight.place)
            self.add(weight.key, weight.origin, weight.shape, list(placed(extents, start, weight.origin, weight.shape)))
            if ambiguous:
                self._ambiguous.add(weight.key[1])

    def masters(self, files: tuple[SourceFile, ...], where: str) -> Masters:
        """All that is whole. Raises FormatError for a master whose parts do not make up its weight."""
        out, wrong = {}, []
        for key, by_box in self._boxes.items():
            weight = self._weights[key]
            extents = tuple(extent for some in by_box.values() for extent in some)
            error = tiling_error(weight.shape, [(extent.origin, extent.shape) for extent in extents])
            if error:
                wrong.append(f"{printable(key[1])}: {error}")
                continue
            out[key] = StoredTensor(weight.name, weight.shape, "float32", extents, weight.part)
        if wrong:
            raise FormatError(
                "the optimizer's float32 weights do not make up the model's",
                where=where,
                got="; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""),
                cause="a save of another model, or an order of parameters that crossdock does not know",
                fix="--weights model takes the model's own",
            )
        notices: tuple[str, ...] = ()
        if self._ambiguous:
            name = printable(min(self._ambiguous))
            notices = (
                f"{len(self._ambiguous)} tensors such as {name} begin, rounded, with the same values as others: of the"
                " optimizer's float32 weights, the order in which Megatron registers parameters tells them apart",
            )
        return Masters(out, files, notices)
