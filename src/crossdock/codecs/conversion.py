"""From the bytes of one codec to the bytes of another, in runs that stay in the cache.

Equal codecs are copied, plain dtypes cast directly, small dtypes looked up in a table; everything else goes
through float32. A conversion holds no buffer: each worker brings its own `Workspace`, so one conversion
serves all threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from crossdock.codecs import compiled_encoders
from crossdock.codecs.cast import Plain, bfloat16_to_float16, byte_table
from crossdock.codecs.codec import Bytes, Codec, Values, encoded_size
from crossdock.errors import UsageError

RUN = 32768  # elements converted at a time: 128 KiB of float32


class Workspace:
    """The scratch memory of one worker. Never shared between threads."""

    __slots__ = ("_floats",)

    def __init__(self) -> None:
        self._floats = np.empty(0, np.float32)

    def floats(self, elements: int) -> Values:
        """`elements` float32 of undefined content, valid until the next call."""
        if self._floats.size < elements:
            self._floats = np.empty(elements, np.float32)
        return self._floats[:elements]


Run = Callable[[Bytes, Bytes, Workspace], None]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` found for a pair of codecs.

    block  elements that can be converted by themselves: the least common multiple of both blocks
    exact  True when no finite value changes
    chatty True when it is made of many short numpy calls: threads that do such work at once mostly wait for each
           other's interpreter lock, and take longer together than one after another
    """

    source: Codec
    target: Codec
    block: int
    exact: bool
    holds_gil: bool
    _run: Run = field(repr=False)
    _scratch: int

    def __call__(self, raw: Bytes, out: Bytes, workspace: Workspace | None = None) -> None:
        """Convert `raw` into `out`: flat uint8, whole blocks. ValueError when the sizes do not fit."""
        elements, rest = divmod(raw.size, self.source.block_bytes)
        elements *= self.source.block
        if rest or elements % self.block or out.size != encoded_size(self.target, elements):
            raise ValueError(
                f"{raw.size} bytes of {self.source.name} do not fill {out.size} bytes of {self.target.name}"
            )
        self._run(raw, out, Workspace() if workspace is None else workspace)

    def scratch_bytes(self, elements: int) -> int:
        """Upper bound of the memory used beside input and output, workspace included."""
        return min(self._scratch, elements * self._scratch // RUN + 4096)


def convert(source: Codec, target: Codec, compiled: bool | None = None) -> Conversion:
    """The conversion from `source` to `target`. Raises UsageError when `target` cannot be encoded.

    compiled  use numba's encoders: yes, no, None for wherever they are available; the bytes are the same
    """
    if source.name == target.name:
        return Conversion(source, target, source.block, True, False, _copy, 0)
    if not target.encodes:
        raise UsageError(
            f"tensors stored as {source.name} cannot become {target.name}",
            cause=f"{target.name} is only read or copied",
            fix="choose a float dtype, q8_0, q4_k or another of ggml's blocks",
        )
    exact = target.exact
    if isinstance(source, Plain):
        exact = isinstance(target, Plain) and target.holds(source) and _reads_exactly(source)
        by_table = source.block_bytes <= 2
        if isinstance(target, Plain) and source.encodes and (by_table or not target.saturates):
            run, scratch = _direct(source, target)
            return Conversion(source, target, 1, exact, False, run, scratch)
    block = math.lcm(source.block, target.block)
    wanted = compiled_encoders.available(target) if compiled is None else compiled and bool(target.compiled)
    # float32 values, and what block codecs allocate: about three times a run, those that search eight times
    scratch = (36 if target.searches else 16) * max(RUN, block)
    return Conversion(
        source, target, block, exact, not wanted, _through_float32(source, target, block, wanted), scratch
    )


def _reads_exactly(source: Plain) -> bool:
    """Floats are cast directly, integers by way of float32."""
    return source.encodes or source.fraction_bits <= 23


def _copy(raw: Bytes, out: Bytes, workspace: Workspace) -> None:
    np.copyto(out, raw)


def _direct(source: Plain, target: Plain) -> tuple[Run, int]:
    """Plain float to plain float, and the scratch bytes it takes."""
    size = source.block_bytes
    if source.looked_up or (size == 2 and target.block_bytes == 1):

        def look_up(raw: Bytes, out: Bytes, workspace: Workspace) -> None:
            patterns, into, table = raw.view(f"u{size}"), out.view(target.dtype), byte_table(source, target)
            for start in range(0, patterns.size, RUN):
                np.take(table, patterns[start : start + RUN], out=into[start : start + RUN], mode="clip")

        return look_up, 8 * RUN  # take widens its indices

    if (source.name, target.name) == ("bfloat16", "float16"):

        def shift(raw: Bytes, out: Bytes, workspace: Workspace) -> None:
            bfloat16_to_float16(raw, out, byte_table(source, target).view(np.uint16))

        return shift, 16 * RUN

    def cast(raw: Bytes, out: Bytes, workspace: Workspace) -> None:
        with np.errstate(all="ignore"):
            np.copyto(out.view(target.dtype), raw.view(source.dtype), casting="unsafe")

    return cast, 16 * 8192  # numpy's casting buffer, where it needs one


def _through_float32(source: Codec, target: Codec, block: int, compiled: bool) -> Run:
    # a search that is compiled needs little beside the values, and its pieces cost less in longer runs
    run_length = 2 * RUN if compiled and target.searches else RUN
    step = max(run_length // block, 1) * block
    read, written = encoded_size(source, step), encoded_size(target, step)

    def run(raw: Bytes, out: Bytes, workspace: Workspace) -> None:
        encode = (compiled_encoders.encoder(target) if compiled else None) or target.encode
        for index in range(-(-raw.size // read)):
            part = raw[index * read : (index + 1) * read]
            values = workspace.floats(part.size // source.block_bytes * source.block)
            source.decode(part, values)
            encode(values, out[index * written : (index + 1) * written])

    return run
