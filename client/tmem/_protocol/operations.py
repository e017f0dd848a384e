"""Operations on a server as generators: they yield what is to be sent or waited for, and never do it themselves.

So the synchronous and the asynchronous client drive the same code. A driver that gives up on an operation closes its
generator, which then knows that its calls may still land.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tmem._protocol.messages import DEADLINE_EXCEEDED, UNAVAILABLE, Failure

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tmem._protocol.connection import ServerState

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Send:
    """Make these calls of one method, several at once, and answer with the replies in their order.

    The requests may be made while earlier ones are in flight. `single` says that there is but one; `in_order` that
    several may be carried out one after another, as the server would not work at more than one of them anyway.
    """

    method: str
    requests: Iterable[Message]
    single: bool
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so many seconds; answered with an empty list."""

    seconds: float


Replies: TypeAlias = list[Any]
"""For each call its reply, or a Failure."""

Steps: TypeAlias = Generator[Send | Wait, Replies, _T]


def call(server: ServerState, method: str, request: Message) -> Steps[Any]:
    """One call that is not repeated; an error of the server is raised."""
    server.admit()
    reply = (yield Send(method, (request,), single=True))[0]
    note(server, [reply])
    if not isinstance(reply, Failure):
        return reply
    if reply.code in (UNAVAILABLE, DEADLINE_EXCEEDED):
        raise server.lost(reply.details)
    raise reply.exception()


def note(server: ServerState, replies: Replies) -> None:
    """Count calls, and close the breaker where the server answered any."""
    failures = [reply for reply in replies if isinstance(reply, Failure)]
    away = sum(failure.code in (UNAVAILABLE, DEADLINE_EXCEEDED) for failure in failures)
    server.counters.add("calls", len(replies))
    if failures:
        server.counters.add("failed_calls", len(failures))
    if away < len(replies):
        server.breaker.reset()
