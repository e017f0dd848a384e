"""Waiting for what a process does in its own time."""

import time
from collections.abc import Callable

from tests.lib.support import PATIENCE


def eventually(true: Callable[[], object], patience: float = PATIENCE) -> None:
    """Ask until it is so; after `patience` seconds it must be."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if true():
            return
        time.sleep(0.005)
    assert true()
