"""Whether compiled encoders are there, without importing what they need before one is wanted.

They give the same bytes as numpy. numba costs about 200 MB and half a second, so callers that have little
to do, or little memory, ask `convert` for numpy; CROSSDOCK_NO_NUMBA=1 turns them off everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from crossdock.codecs.codec import Bytes, Codec, Values

Encode = Callable[[Values, Bytes], None]
OFF = "CROSSDOCK_NO_NUMBA"


def available(codec: Codec) -> bool:
    """True when there is a compiled encoder for a codec and numba is installed and not turned off."""
    return bool(codec.compiled) and os.environ.get(OFF, "") in ("", "0") and find_spec("numba") is not None


def encoder(codec: Codec) -> Encode | None:
    """The compiled encoder of a codec; None when numba is installed but does not work here."""
    return _encoder(codec.compiled, codec.name)


@cache
def _encoder(where: str, name: str) -> Encode | None:
    module, _, function = where.partition(":")
    try:
        found: Encode = getattr(import_module(module), function)(name)
    except (ImportError, RuntimeError, OSError):  # no place for its cache, a numpy it does not know, ...
        return None
    return found
