"""Prepares signals and standard streams, before any slow import.

SIGTERM and SIGINT stop the daemon, SIGHUP reloads its configuration, and other signals that would end a process by
default are ignored: none ends a daemon without draining. Process 1 of a namespace has no default actions, so a signal
before there is a handler would be lost.
"""

import os
import signal
import sys

IGNORED = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGPOLL,
    signal.SIGPWR,
)
_early: set[int] = set()


def handle_early_signals() -> None:
    """Until an event loop handles signals: stop at once, as nothing is served yet, and keep SIGHUP for later."""
    ignore(*IGNORED)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, _: os._exit(unserved_status(signum)))
    signal.signal(signal.SIGHUP, lambda signum, _: _early.add(signum))


def ignore(*signums: signal.Signals) -> None:
    for signum in signums:
        signal.signal(signum, signal.SIG_IGN)


def has_come(signum: int) -> bool:
    """Whether a kept signal has arrived; reported once."""
    known = signum in _early
    _early.discard(signum)
    return known


def unserved_status(signum: int) -> int:
    """The exit status of a daemon that a signal stopped before serving."""
    return 128 + signum if signum == signal.SIGINT else 0


def open_streams() -> None:
    """Make sure that descriptors 0 to 2 are open: no other file must get these numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
