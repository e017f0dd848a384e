"""`tmem check`, `compact` and `relinquish`: work on the whole store."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from tmem.cli.base import text
from tmem.cli.base.arguments import SIZE
from tmem.cli.base.failures import Failed
from tmem.cli.base.session import Leaf, Session, pass_session

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@click.command("check", cls=Leaf)
@pass_session
def check(session: Session) -> None:
    """Check the arena's consistency, locking one shard at a time. Exit status 1 if it is damaged."""
    with _waiting(session, "checking the arena"):
        start = time.monotonic()
        violations = session.patient().store.check()
        seconds = time.monotonic() - start
    if session.output.as_json:
        session.output.document({"violations": violations, "seconds": seconds})
    for violation in violations:
        session.output.say(text.printable(violation))
    if violations:
        raise Failed(
            f"the arena is damaged, with {text.quantity(len(violations), 'violation')}: please keep it and report them"
        )
    session.output.say(f"the arena is consistent ({text.duration(seconds)})")


@click.command("compact", cls=Leaf)
@pass_session
def compact(session: Session) -> None:
    """Compact the store: move pages together and return the freed memory to the system."""
    with _waiting(session, "compacting"):
        done = session.patient().store.compact()
    if session.output.as_json:
        session.output.document(done)
    session.output.say(f"moved {text.quantity(done['moved_pages'], 'page')}, freed {text.size(done['freed_bytes'])}")


@click.command("relinquish", cls=Leaf)
@click.argument("size", type=SIZE)
@pass_session
def relinquish(session: Session, size: int) -> None:
    """Return memory to the system by evicting ephemeral pages. Persistent pages stay."""
    with _waiting(session, "returning memory"):
        given = session.patient().store.relinquish(size)
    if session.output.as_json:
        session.output.document({"asked_bytes": size, "given_back_bytes": given})
    short = "" if given >= size else f" of {text.size(size)}: nothing more can be evicted"
    session.output.say(f"returned {text.size(given)}{short}")


def _waiting(session: Session, what: str) -> AbstractContextManager[object]:
    """A spinner, on a terminal."""
    aside = session.output.aside
    return aside.status(what) if aside.is_terminal and not session.output.as_json else nullcontext()


COMMANDS = (check, compact, relinquish)
