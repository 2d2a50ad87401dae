"""Memory of one step, kept for the next."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_NEVER = -1  #: as a size, the largest there is


def keep_freed_memory() -> None:
    """Tensors of a step take the memory of those before them. glibc would map each large one anew and the system fill
    it with zeros, which takes as long as a third of the computing; other allocators are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
