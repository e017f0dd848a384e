"""Kernel settings that keep the daemon responsive under memory pressure.

Set before any thread starts, as threads inherit them. A refusal is a `ConfigError`: a daemon that should be safe to
swap to, and is not, does not start.
"""

from __future__ import annotations

import ctypes
import os

from tmemd.base.errors import ConfigError

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_IO_FLUSHER = 57


def lock_memory() -> None:
    """Lock every page of this process, including the arena, from its first use on."""
    # On fault only: the arena's address space is much larger than what it may use.
    if _libc().mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        raise ConfigError(
            f"lock_memory: {_why()}; it needs CAP_IPC_LOCK, or a sufficient limit on locked memory (ulimit -l)"
        )


def be_io_flusher() -> None:
    """Never let the kernel's allocations for this process wait for writes, which it may be serving itself."""
    if _libc().prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        raise ConfigError(f"io_flusher: {_why()}; it needs CAP_SYS_RESOURCE and Linux 5.6")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _why() -> str:
    return os.strerror(ctypes.get_errno())
