"""Whether compiled encoders are there, without importing what they need before one is wanted.

They give the same bytes as numpy. numba costs about 200 MB and half a second, so callers that have little
to do, or little memory, ask `convert` for numpy; CROSSDOCK_NO_NUMBA=1 turns them off everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np

from crossdock.codecs.codec import Bytes, Values

Encode = Callable[[Values, Bytes], None]
NAMES = ("q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
OFF = "CROSSDOCK_NO_NUMBA"


def available(name: str) -> bool:
    """True when there is a compiled encoder for a codec and numba is installed and not turned off."""
    return name in NAMES and os.environ.get(OFF, "") in ("", "0") and find_spec("numba") is not None


@cache
def encoder(name: str) -> Encode | None:
    """The compiled encoder of a codec; None when numba is installed but does not work here."""
    try:
        from crossdock.codecs import ggml_k_encode, ggml_k_numba, ggml_legacy_numba
    except (ImportError, RuntimeError, OSError):  # no place for its cache, a numpy it does not know, ...
        return None
    if name == "q8_0":
        return lambda values, out: ggml_legacy_numba.q8_0(values, values.view(np.uint32), out)
    return lambda values, out: ggml_k_encode.encode(name, values, out, ggml_k_numba.NUMBA)
