"""What a codec is: values in, bytes out, and back. Codecs know neither tensors nor files.

Nothing outside a codec looks at its name: what others need to know about it, it says itself.

A codec works on flat runs of elements. `block` elements take `block_bytes` bytes, and only whole blocks can
be encoded or decoded. Values travel as float32, except between plain dtypes, where `convert` goes directly.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Values = NDArray[np.float32]


class Codec(Protocol):
    """One encoding of values as bytes. Implementations are small frozen dataclasses.

    name         "float32", "bfloat16", "q8_0", ...: the name used by plans, flags and manifests
    block        elements per block, 1 for plain dtypes
    block_bytes  bytes per block
    exact        True when decode(encode(x)) == x for every float32 x
    encodes      False for what is only read or copied, such as integers; `encode` then raises UsageError
    searches     encoding tries many scales for a block: it takes long, and more scratch memory
    cost         seconds that encoding a byte takes, relative to a codec that computes one scale for a block;
                 0: nothing that compiled code would be worth starting for
    is_scaled    values need the scale that is stored beside them to mean anything (fp8)
    file_type    its number in GGUF's general.file_type (llama_ftype in llama.h); None: GGUF files are not made of it
    compiled     "module:function" of a compiled encoder that gives the same bytes; the function takes the codec's name
    """

    @property
    def name(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def encodes(self) -> bool: ...
    @property
    def searches(self) -> bool: ...
    @property
    def cost(self) -> int: ...
    @property
    def is_scaled(self) -> bool: ...
    @property
    def file_type(self) -> int | None: ...
    @property
    def compiled(self) -> str: ...

    def encode(self, values: Values, out: Bytes) -> None:
        """Write `values` (float32, C-contiguous, whole blocks) into `out` (exactly the encoded size)."""
        ...

    def decode(self, raw: Bytes, out: Values) -> None:
        """Read whole blocks from `raw` into `out` (float32)."""
        ...


def encoded_size(codec: Codec, elements: int) -> int:
    """Bytes that `elements` values take. `elements` must be whole blocks."""
    return elements // codec.block * codec.block_bytes
