"""The C library's allocator, told to keep what messages free.

Messages come and go in blocks of some 100 KiB. Left to itself glibc gives the end of its heap back to the kernel after
most of them and takes it again for the next: hundreds of page faults a call, a third of the processor time of a get of
64 pages.
"""

from __future__ import annotations

import ctypes

# From malloc.h. Setting one ends glibc's own adjustment of both.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT = 64 << 20
"""Most bytes kept free at the end of a heap."""
LARGE = 16 << 20
"""Bytes from which a block is mapped by itself, and given back at once."""


def keep_freed_memory() -> bool:
    """Whether the C library has such settings, and took them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT))
