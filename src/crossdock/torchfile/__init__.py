"""torch.save files, read without torch and without reading tensor data."""

from crossdock.torchfile.archive import Archive, Entry, read_archive
from crossdock.torchfile.legacy import is_legacy
from crossdock.torchfile.reader import (
    TorchFile,
    is_tensor_like,
    locate_single,
    open_torch,
    read_object,
    state_tensors,
)

__all__ = [
    "Archive",
    "Entry",
    "TorchFile",
    "is_legacy",
    "is_tensor_like",
    "locate_single",
    "open_torch",
    "read_archive",
    "read_object",
    "state_tensors",
]
