"""What a fork leaves to the child: locks, connections, and gRPC. All that is done about it is done here.

A forked child has one thread, whatever its parent had: a lock that another thread held is never let go of, a socket is
its parent's too, and gRPC works only where no thread was in a call of it. So a fork waits a moment for the calls of
other threads, locks made by `lock` are free in the child, and who was given to `register` is reset. Where gRPC cannot
work, `check` says so.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tmem._model.errors import TmemError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Forkable(Protocol):
    """Has something that a child cannot share."""

    def reset_after_fork(self) -> None:
        """Called in the child. It takes no lock and uses no connection."""


PATIENCE = 1.0
"""Seconds that a fork waits for calls to end."""

CALLS: set[object] = set()
"""A token of each call in flight. Discarding one is a single step, which no signal can come between."""

LONG_LIVED: set[object] = set()
"""A token of each thing that keeps gRPC at work and that waiting does not end: watches, asynchronous connections."""

_SWEEP = 64
_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
_gate = threading.Lock()
# No WeakSet: its callbacks would swallow what a signal handler raises in them.
_locks: list[weakref.ref[Any]] = []
_registered: list[weakref.ref[Forkable]] = []
_held = False
_quiet = True
_unusable = False
_has_fork_handlers = os.environ.get(_FORK_SUPPORT, "1").lower() not in ("0", "f", "false", "n", "no")


def lock() -> threading.Lock:
    """A lock that is free in a child, for what is consistent between any two steps under it."""
    made = threading.Lock()
    _remember(_locks, made)
    return made


def register(thing: Forkable) -> None:
    """Reset this in a forked child, if it still exists by then."""
    _remember(_registered, thing)


def leak(thing: object) -> None:
    """Keep something of the parent's that must not even be let go of in the child, at its end neither.

    What gRPC does then may wait for a lock that a thread of the parent held.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@contextmanager
def importing_grpc_for_aio() -> Iterator[None]:
    """Has gRPC no fork handlers if it is imported in here first, and the environment says nothing of them.

    While `grpc.aio` is in use they run by half: the child has gRPC's threads with the connections of its parent, which
    end it by SIGSEGV in a third of all cases. gRPC reads the variable as it is imported; no other process inherits it.
    """
    global _has_fork_handlers
    if "grpc" in sys.modules or _FORK_SUPPORT in os.environ:
        yield
        return
    os.environ[_FORK_SUPPORT] = "0"
    try:
        yield
        _has_fork_handlers = False
    finally:
        os.environ.pop(_FORK_SUPPORT, None)


def begin(token: object) -> None:
    """A call begins; waits while the process forks. Its end is `CALLS.discard(token)`."""
    check()
    with _gate:
        CALLS.add(token)


def check() -> None:
    """Raise where gRPC cannot work in this process."""
    if _unusable:
        raise TmemError(
            "this process was forked from one that was in a call to a server, watched its events or was connected by "
            "tmem.aio, and gRPC cannot work in such a child: start it by multiprocessing's 'spawn' or 'forkserver'"
        )


def _before() -> None:
    global _held, _quiet
    _held = _gate.acquire(timeout=PATIENCE)
    end = time.monotonic() + PATIENCE
    while CALLS and _has_fork_handlers and not LONG_LIVED and time.monotonic() < end:
        time.sleep(0.0005)
    _quiet = _held and _has_fork_handlers and not (CALLS or LONG_LIVED)


def _in_parent() -> None:
    global _held
    if _held:
        _held = False
        _gate.release()


def _in_child() -> None:
    global _gate, _held, _unusable
    _gate, _held = threading.Lock(), False
    _unusable = _unusable or not _quiet
    CALLS.clear()
    while LONG_LIVED:
        leak(LONG_LIVED.pop())
    for held in _alive(_locks):
        held._at_fork_reinit()
    for thing in _alive(_registered):
        thing.reset_after_fork()


def _remember(known: list[weakref.ref[Any]], thing: Any) -> None:
    known.append(weakref.ref(thing))
    if len(known) % _SWEEP == 0:
        known[:] = [reference for reference in known if reference() is not None]


def _alive(known: list[weakref.ref[Any]]) -> list[Any]:
    return [thing for reference in known if (thing := reference()) is not None]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
