"""Reading pickles without running them: a machine of our own, inert values, a table of known names."""

from crossdock.unpickle.limits import Limits, TruncatedPickleError
from crossdock.unpickle.machine import load, load_at
from crossdock.unpickle.schema import ITEM_SIZES, dtype_of, storage_dtype
from crossdock.unpickle.values import (
    Charge,
    Global,
    Instance,
    Rule,
    StateDict,
    StorageRef,
    TensorRef,
    attributes,
    describe,
    printable,
)

__all__ = [
    "ITEM_SIZES",
    "Charge",
    "Global",
    "Instance",
    "Limits",
    "Rule",
    "StateDict",
    "StorageRef",
    "TensorRef",
    "TruncatedPickleError",
    "attributes",
    "describe",
    "dtype_of",
    "load",
    "load_at",
    "printable",
    "storage_dtype",
]
