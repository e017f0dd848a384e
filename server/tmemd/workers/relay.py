"""Relays calls that only worker 0 can carry out, from other workers through the supervisor and back."""

from __future__ import annotations

import itertools
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from tmemd.base.errors import RelayedError
from tmemd.rpc.handler import explain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tmemd.workers.child import Child
    from tmemd.workers.control_channel import Message


class Relay:
    """The supervisor's part: which worker waits for which answer."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[Child, int]] = {}
        self._numbers = itertools.count()

    def ask(self, asker: Child, first: Child, message: Message) -> None:
        """Pass a call on to worker 0."""
        if not first.ready.is_set():
            asker.send(answer=message["call"], **_gone())
            return
        number = next(self._numbers)
        self._asked[number] = (asker, message["call"])
        first.send(carry=number, method=message["method"], request=message["request"])

    def answered(self, message: Message) -> None:
        """Pass an answer back."""
        asker, number = self._asked.pop(message["carried"], (None, 0))
        if asker is not None:
            asker.send(answer=number, **{key: value for key, value in message.items() if key != "carried"})

    def gone(self) -> None:
        """Worker 0 is gone: its pending calls fail."""
        asked, self._asked = self._asked, {}
        for asker, number in asked.values():
            asker.send(answer=number, **_gone())


def request_of(method: str, request: bytes) -> dict[str, str]:
    """A call as a message of the control channel."""
    return {"method": method, "request": b64encode(request).decode()}


async def carry_out(answer: Callable[[str, bytes], Awaitable[bytes]], message: Message) -> dict[str, Any]:
    """Worker 0's part: the answer to a call, as a message of the control channel."""
    try:
        reply = await answer(message["method"], b64decode(message["request"]))
    except Exception as error:
        code, why = explain(message["method"], error)
        return {"code": code.name, "why": why}
    return {"reply": b64encode(reply).decode()}


def reply_of(message: Message) -> bytes:
    """The answer of worker 0; raises if it is an error."""
    if "reply" in message:
        return b64decode(message["reply"])
    raise RelayedError(StatusCode[message["code"]], message["why"])


def _gone() -> dict[str, str]:
    return {"code": "UNAVAILABLE", "why": "worker 0, which has the exports, is being replaced"}
