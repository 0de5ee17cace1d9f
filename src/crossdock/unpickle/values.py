"""What a pickle turns into here: inert values that stand for objects, never the objects themselves.

Nothing in this module imports, calls or subclasses what a pickle names. Tensors become `TensorRef`s that say
where their bytes are. Facts from torch 2.13 (`torch/_utils.py`, `torch/serialization.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crossdock.errors import FormatError

Charge = Callable[[int], None]
Rule = Callable[[tuple[object, ...], Charge], object]

MAX_DIMENSIONS = 64
BROADCAST_BYTES = 1 << 26  # a view may claim this many bytes more than its storage has (expanded buffers)


class Global:
    """A name that a pickle mentions: `module` and `name`. Never looked up, never imported.

    `rule` says what a call of it gives: None (refused), INERT (an `Instance`), or a function of our own.
    """

    __slots__ = ("module", "name", "rule")

    def __init__(self, module: str, name: str, rule: Rule | bool | None = None) -> None:
        self.module = module
        self.name = name
        self.rule = rule

    @property
    def qualified(self) -> str:
        """`module.name`, cut to a length that fits a message."""
        return printable(f"{self.module}.{self.name}")

    def __eq__(self, other: object) -> bool:
        return type(other) is Global and self.module == other.module and self.name == other.name

    def __hash__(self) -> int:
        return hash((self.module, self.name))

    def __repr__(self) -> str:
        return self.qualified


class Instance:
    """An object that the pickle would have made: its class and what it was given. Equality is identity.

    cls     the class or function that would have been called
    args    the arguments of that call
    state   what `__setstate__` or `__dict__` would have received, None if nothing
    items   what would have been appended (list-like classes), None if nothing
    pairs   what would have been set by key (dict-like classes), None if nothing
    """

    __slots__ = ("args", "cls", "items", "pairs", "state")

    def __init__(self, cls: Global, args: tuple[object, ...]) -> None:
        self.cls = cls
        self.args = args
        self.state: object = None
        self.items: list[object] | None = None
        self.pairs: dict[object, object] | None = None

    def __repr__(self) -> str:
        return f"<{self.cls.qualified}>"


class StateDict(dict[object, object]):
    """A dict that remembers attributes set on it: OrderedDict (with `_metadata`), defaultdict, Counter."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        super().__init__()
        self.attributes: object = None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of bytes in a file that tensors look into.

    key     its name in the archive
    dtype   codec name of its elements; "uint8" for an untyped storage
    offset  absolute byte in the file where it starts
    nbytes  its size
    """

    key: str
    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that was not read: which elements of which storage it is. Strides count elements.

    Made by `tensor_ref`, which checks that every element lies inside the storage.
    """

    storage: StorageRef
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    itemsize: int

    @property
    def offset(self) -> int:
        """Absolute byte in the file of the tensor's first element."""
        return self.storage.offset + self.first * self.itemsize

    @property
    def elements(self) -> int:
        """The number of elements in the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, each counted once."""
        return self.elements * self.itemsize

    @property
    def contiguous(self) -> bool:
        """True when the elements lie one after another in C order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return self.elements == 0
            expected *= size
        return True


def tensor_ref(storage: object, dtype: str, itemsize: int, first: object, shape: object, strides: object) -> TensorRef:
    """A checked `TensorRef`. Raises ValueError with a sentence when it would reach outside its storage."""
    if type(storage) is not StorageRef:
        raise ValueError("a tensor without a storage")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("a tensor whose size and stride do not match")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions; the limit is {MAX_DIMENSIONS}")
    if type(first) is not int or not 0 <= first < 1 << 62:
        raise ValueError("a tensor whose storage offset is not a number of elements")
    last, elements = first, 1
    for size, stride in zip(shape, strides, strict=True):
        if type(size) is not int or type(stride) is not int or not (0 <= size < 1 << 62 > stride >= 0):
            raise ValueError("a tensor whose size or stride is not a number of elements")
        last += (size - 1) * stride
        elements *= size
    if elements and (last + 1) * itemsize > storage.nbytes:
        raise ValueError(f"a tensor reaches to byte {(last + 1) * itemsize} of its storage, which has {storage.nbytes}")
    if elements * itemsize > max(storage.nbytes, BROADCAST_BYTES):
        raise ValueError(f"a tensor claims {elements} elements over a storage of {storage.nbytes} bytes")
    return TensorRef(storage, dtype, shape, strides, first, itemsize)


def attributes(value: object) -> dict[str, object]:
    """The attributes that an object would have had: of an `Instance` or a `StateDict`.

    State is a dict, or the pair (dict or None, dict) of classes with slots. Raises FormatError otherwise.
    """
    state = value.state if isinstance(value, Instance) else None
    if isinstance(value, StateDict):
        state = value.attributes
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    out: dict[str, object] = {}
    for part in parts:
        if part is None:
            continue
        if not isinstance(part, dict) or any(type(key) is not str for key in part):
            raise FormatError(f"{describe(value)} has a state that is not a dict of attributes")
        out.update(part)
    return out


def describe(value: object) -> str:
    """What kind of value this is, in a few words: never its content."""
    if isinstance(value, Global):
        return f"the name {value.qualified}"
    if isinstance(value, Instance):
        return f"an object of {value.cls.qualified}"
    if isinstance(value, TensorRef):
        return "a tensor"
    return "a dict" if isinstance(value, dict) else f"a value of type {type(value).__name__}"


def printable(text: str, limit: int = 120) -> str:
    """`text` without control characters and cut to `limit`, safe to show on a terminal."""
    shown = text[: limit + 1].encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
