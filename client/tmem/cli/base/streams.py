"""Standard streams that are closed at the start, whose places the next files to be opened would take.

Then standard input is empty, writing to standard output fails, as for any tool, and what is said on standard error is
lost.
"""

from __future__ import annotations

import os
import sys


def fill() -> None:
    """Open what is closed."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def end(status: int) -> int:
    """Write out what is left for standard output; the status, of a failure where that cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not status:
            print(f"tmem: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return status or 1
    return status
