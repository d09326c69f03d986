"""Memory that malloc holds for nothing, given back: compiling the programs comes close to filling a small limit."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Returns what is free to the system, at the price of some milliseconds. Without a glibc it does nothing."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
