"""What a daemon asks of the kernel that must answer when its machine has no memory left.

Asked before any thread is made, for threads inherit it. What the kernel refuses is a `ConfigError`: a daemon that is to
be safe to swap to, and is not, does not start.
"""

from __future__ import annotations

import ctypes
import os

from tmemd.base.errors import ConfigError

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_IO_FLUSHER = 57


def lock_memory() -> None:
    """Keep every page of this process, the arena's included, in memory from when it is first used."""
    # On fault alone: the arena's address space is much larger than what it may use.
    if _libc().mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        raise ConfigError(
            f"lock_memory: {_why()}; it takes CAP_IPC_LOCK, or a limit on locked memory (ulimit -l) to fit"
        )


def be_io_flusher() -> None:
    """Have the kernel's allocations for this process never wait for writes, which may be those it serves."""
    if _libc().prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        raise ConfigError(f"io_flusher: {_why()}; it takes CAP_SYS_RESOURCE, and Linux 5.6")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _why() -> str:
    return os.strerror(ctypes.get_errno())
