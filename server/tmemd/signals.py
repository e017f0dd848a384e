"""Signals that ask a process to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal


def on_signals(*signums: signal.Signals) -> asyncio.Event:
    """An event that is set when one of the signals comes."""
    event = asyncio.Event()
    for signum in signums:
        asyncio.get_running_loop().add_signal_handler(signum, event.set)
    return event
