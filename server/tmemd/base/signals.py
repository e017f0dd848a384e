"""Signals that ask a process to stop, or to reload its configuration."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING

from tmemd.base.startup import has_come

if TYPE_CHECKING:
    from collections.abc import Callable


class StopEvent(asyncio.Event):
    """Set when the process is asked to stop."""

    signum = 0
    """The signal that asked; 0 where none did."""

    @property
    def why(self) -> str:
        return signal.Signals(self.signum).name if self.signum else "the supervisor asked"

    def ask(self, signum: int) -> None:
        self.signum = self.signum or signum
        self.set()


def on_signals(*signums: signal.Signals, reload: Callable[[], None] | None = None) -> StopEvent:
    """Set when one of the signals comes; `reload` is called on the loop for each SIGHUP."""
    stopping, loop = StopEvent(), asyncio.get_running_loop()
    actions: dict[signal.Signals, Callable[[], None]] = {each: partial(stopping.ask, each) for each in signums}
    if reload is not None:
        actions[signal.SIGHUP] = reload
    # Signals that arrive while handlers are replaced stay pending.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, actions)
    for signum, action in actions.items():
        loop.add_signal_handler(signum, action)
        if has_come(signum):
            loop.call_soon(action)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return stopping
