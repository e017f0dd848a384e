"""Injects delays and errors into calls, to test clients. `tmem_proto.faults` has the syntax.

If several match a call, their delays add up and the first code counts. `Inject` itself is exempt: it can end them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from grpc import StatusCode

from tmem_proto import faults
from tmem_proto.v1 import admin_pb2, tmem_pb2
from tmemd.base.errors import InjectedError, NotAllowedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

R = TypeVar("R")

MOST = 64
"""Injections at once."""
MOST_DELAY_MS = 60_000

_STATUS: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode if code is not StatusCode.OK}


def _methods() -> frozenset[str]:
    services = tmem_pb2.DESCRIPTOR.services_by_name["Tmem"], admin_pb2.DESCRIPTOR.services_by_name["TmemAdmin"]
    unary = {
        method.name
        for service in services
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    }
    commands = tmem_pb2.Command.DESCRIPTOR.oneofs_by_name["body"].fields
    return frozenset(unary - {"Inject"} | {f"Exchange.{field.name}" for field in commands} | {"*"})


METHODS = _methods()
"""Methods that accept injections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """What to do to calls of a method. An invalid one is a `ValueError`."""

    method: str
    delay_ms: int = 0
    code: StatusCode | None = None
    fraction: float = 1.0
    after: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"nothing can be injected into {self.method!r}; only into {', '.join(sorted(METHODS))}")
        if not 0 <= self.delay_ms <= MOST_DELAY_MS:
            raise ValueError(f"the delay of {self.method} is {self.delay_ms} ms; at most {MOST_DELAY_MS} are possible")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"the fraction of {self.method} is {self.fraction}; it must be above 0, and at most 1")
        if self.after and self.code is None:
            raise ValueError(f"the injection into {self.method} says after, but no code")
        if not self.delay_ms and self.code is None:
            raise ValueError(f"the injection into {self.method} has neither delay nor code")

    def __str__(self) -> str:
        parts = [f"delay={self.delay_ms}ms"] if self.delay_ms else []
        parts += [f"code={self.code.name}"] if self.code else []
        parts += ["after"] if self.after else []
        parts += [f"fraction={self.fraction}"] if self.fraction < 1 else []
        return f"{self.method}:{','.join(parts)}"

    @classmethod
    def of(cls, message: admin_pb2.Injection) -> Injection:
        """The injection in a message."""
        if message.code and message.code not in _STATUS:
            raise ValueError(f"unknown status {message.code}")
        return cls(
            method=message.method,
            delay_ms=message.delay_ms,
            code=_STATUS.get(message.code),
            fraction=message.fraction or 1.0,
            after=message.after,
        )

    def message(self) -> admin_pb2.Injection:
        code = self.code.value[0] if self.code else 0
        return admin_pb2.Injection(
            method=self.method, delay_ms=self.delay_ms, code=code, fraction=self.fraction, after=self.after
        )


def injections(value: object) -> tuple[Injection, ...]:
    """Parse one text or a list of them; empty ones are ignored."""
    texts: list[object] = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("expected texts such as Put:delay=50ms,fraction=0.1")
    return tuple(Injection.of(fault) for text in texts for fault in faults.parse(str(text)))


class Injections:
    """The injections in force. Lives on the event loop."""

    def __init__(self, first: tuple[Injection, ...] | None) -> None:
        self.active = first or ()
        """Empty if nothing is injected: all that most calls look at."""
        self._allowed = first is not None

    def replace(self, injections: tuple[Injection, ...]) -> tuple[Injection, ...]:
        """Replace all injections; returns the previous ones."""
        if not self._allowed:
            raise NotAllowedError("the daemon was started without --inject")
        if len(injections) > MOST:
            raise ValueError(f"there are {len(injections)} injections; at most {MOST} are taken")
        before, self.active = self.active, injections
        return before

    async def around(self, method: str, call: Callable[[], Awaitable[R]]) -> R:
        """Make a call subject to the injections."""
        names = (method, "*") if method in METHODS else ()
        chosen = [one for one in self.active if one.method in names and random.random() < one.fraction]
        delay = sum(one.delay_ms for one in chosen)
        if delay:
            await asyncio.sleep(delay / 1000)
        failing = next((one for one in chosen if one.code), None)
        if failing is None:
            return await call()
        if failing.after:
            await call()
        assert failing.code is not None
        raise InjectedError(method, failing.code, failing.after)
