"""How signals end the command `tmem`: nothing is left behind and nothing is printed.

SIGINT ends it at once with status 130, while it is imported or closed. While a command is carried out the first one is
a KeyboardInterrupt, so that what was begun is ended in order, and the next ends it at once. SIGTERM and SIGHUP do what
they do to any program, after the files in `leftovers` are gone.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

INTERRUPTED = 130

leftovers: set[str] = set()
"""Temporary files that may exist now."""


def prepare() -> None:
    """Install the handlers, except for signals that the process was told to ignore."""
    for name, handler in (("SIGINT", _at_once), ("SIGTERM", _as_any), ("SIGHUP", _as_any)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def in_order() -> Iterator[None]:
    """Within the block, the first SIGINT raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is not _at_once:
        yield
        return
    signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _at_once)


def _first(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _at_once)
    raise KeyboardInterrupt


def _at_once(_number: int, _frame: FrameType | None) -> None:
    _clear()
    os._exit(INTERRUPTED)


def _as_any(number: int, _frame: FrameType | None) -> None:
    _clear()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1 has no default action


def _clear() -> None:
    for name in tuple(leftovers):
        with suppress(OSError):
            os.unlink(name)
