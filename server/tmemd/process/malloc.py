"""Tunes the C library's allocator to keep the memory of messages.

Messages use blocks of about 100 KiB. By default glibc returns the end of its heap to the kernel after most of them and
takes it back for the next: hundreds of page faults per call, a third of the processor time of a get of 64 pages.
"""

from __future__ import annotations

import ctypes

# From malloc.h. Setting one ends glibc's own adjustment of both.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT = 64 << 20
"""Most free bytes kept at the end of a heap."""
LARGE = 16 << 20
"""Bytes from which a block is mapped separately, and returned at once."""


def keep_freed_memory() -> bool:
    """Returns whether the C library supports and accepted this."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT))
