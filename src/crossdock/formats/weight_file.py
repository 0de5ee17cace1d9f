"""One file of weights, safetensors or torch.save: its tensors and where their bytes are. Knows no names' meaning.

Reads headers only; torch files go through the safe pickle machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crossdock.errors import FormatError
from crossdock.formats import safetensors
from crossdock.formats.stored import Extent, StoredTensor
from crossdock.torchfile.reader import open_torch, state_tensors
from crossdock.unpickle import describe, printable

if TYPE_CHECKING:
    from crossdock.unpickle import TensorRef

_OTHER: Final = re.compile(
    r"(app\.|state_dict\.)?(optim|optimizers?|optimizer_states?|lr_schedulers?|schedulers?|dataloader|train_state"
    r"|rng_state)([./]|\Z)"
)
_MOMENTS: Final = re.compile(r"\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|step)\Z")


def tensors_in(file: Path, number: int) -> Iterator[StoredTensor]:
    """The tensors of `file`, which is file `number` of its source, in the file's order.

    A torch file holds them in nested dicts; names are the keys joined by dots.
    Raises FormatError, UnsafePickleError, NotACheckpointError.
    """
    if file.suffix == ".safetensors":
        for name, tensor in safetensors.read_header(file).tensors.items():
            extent = Extent(number, tensor.begin, tensor.end - tensor.begin, (0,) * len(tensor.shape), tensor.shape)
            yield StoredTensor(name, tensor.shape, tensor.codec, (extent,))
        return

    root = open_torch(file, where=str(file)).root
    if not isinstance(root, dict):
        raise FormatError(
            f"the file holds {describe(root)}, not a dict of tensors",
            where=str(file),
            cause="a whole model that was pickled, or one object of a training program",
            fix="save its tensors: torch.save(model.state_dict(), PATH)",
        )
    for name, ref in state_tensors(root, where=str(file)):
        yield stored(name, ref, number)


def is_weight(name: str) -> bool:
    """False for the state of optimizers, schedules, data loaders and random number generators."""
    return not _OTHER.match(name) and not _MOMENTS.search(name)


def training_state(names: Iterable[str]) -> dict[str, str]:
    """What is left out of a checkpoint as training state, a line a kind -> why."""
    counts = Counter("optimizer.*" if _MOMENTS.search(n) else printable(re.split(r"[./]", n)[0]) + ".*" for n in names)
    return {f"{kind} ({n:,} entries)": "training state, not weights" for kind, n in counts.items()}


def stored(name: str, ref: TensorRef, number: int) -> StoredTensor:
    """A torch tensor as a stored one of file `number`."""
    strides = None if ref.contiguous else ref.strides
    used = 1 + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides, strict=True))
    nbytes = used * ref.itemsize if ref.elements else 0
    extent = Extent(number, ref.offset, nbytes, (0,) * len(ref.shape), ref.shape, strides)
    return StoredTensor(name, ref.shape, ref.dtype, (extent,) if ref.elements else ())
