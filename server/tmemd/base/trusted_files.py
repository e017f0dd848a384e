"""Files that decide whom the daemon trusts: read only if nobody but their owner can have written them.

The client side has the same rule: `tmem._transport.tls`, and `tls/client.rs` of the engine.
"""

from __future__ import annotations

import os
import stat
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def check_writers(file: IO[bytes], path: str | Path) -> None:
    """Raise ValueError if others may write an open file: anyone, or a group that is neither ours nor root's."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        return
    anyone = found.st_mode & stat.S_IWOTH
    if anyone or (found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid())):
        who = "anyone" if anyone else f"group {found.st_gid}"
        raise ValueError(f"{path}: {who} may write it (mode {found.st_mode & 0o7777:04o}): chmod go-w {path}")


def readable_by_anyone(path: str) -> str:
    """The warning for a key that anyone may read; empty if nobody else may.

    It is not an error: in a container a mounted secret may belong to root and be readable by everyone inside.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    if not mode & stat.S_IROTH:
        return ""
    return f"{path}: anyone may read this key (mode {mode & 0o7777:04o}): chmod o-r {path}"
