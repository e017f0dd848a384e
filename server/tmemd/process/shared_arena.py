"""An anonymous arena for workers, passed on by its descriptor.

It ends with the processes that have it. Nobody else can open, replace or truncate it: the engine seals it when it
creates the arena.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def shared_arena(named: str | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The path of the named or anonymous arena, and the descriptors that workers must inherit to open it."""
    if named is not None:
        yield named, ()
        return
    memory = os.memfd_create("tmem-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(memory, 0o600)
        yield f"/proc/self/fd/{memory}", (memory,)
    finally:
        os.close(memory)
