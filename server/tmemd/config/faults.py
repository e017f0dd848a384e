"""Delays and errors put into calls on purpose, for tests of clients.

An injection is written `METHOD:PART,PART...`, its parts being

    delay=50ms      wait so long (ms or s) before the call is looked at
    code=NAME       answer with this status in place of the call, such as UNAVAILABLE
    after           carry the call out first, then answer with the code: as if the reply were lost
    fraction=0.1    of calls, picked at random; all unless given

METHOD is a unary method such as `Put`, a command of a stream such as `Exchange.put`, or `*` for every one. Where
several concern a call, their delays add up and the first code counts. `Inject` itself is spared: it can end them.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from grpc import StatusCode

from tmem_proto.v1 import admin_pb2, tmem_pb2
from tmemd.base.errors import InjectedError, NotAllowedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

R = TypeVar("R")

MOST = 64
"""Injections at once."""
MOST_DELAY_MS = 60_000

_CODES: dict[str, StatusCode] = {code.name: code for code in StatusCode if code is not StatusCode.OK}


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
"""What can be injected into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """What is done to calls of a method. One that makes no sense is a `ValueError`."""

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
    def parse(cls, text: str) -> Injection:
        """The injection that is written so."""
        method, _, parts = text.strip().partition(":")
        fields: dict[str, int | float | bool | StatusCode] = {}
        for part in filter(None, (part.strip() for part in parts.split(","))):
            key, _, value = part.partition("=")
            reader = _READERS.get(key)
            if reader is None:
                raise ValueError(f"{part!r} is not one of delay=TIME, code=NAME, after, fraction=NUMBER")
            name, read = reader
            if name in fields:
                raise ValueError(f"{key} is there twice in {text!r}")
            fields[name] = read(value)
        return cls(method=method, **fields)  # type: ignore[arg-type]


def injections(value: object) -> tuple[Injection, ...]:
    """One text, or a list of them; in each several may be parted by semicolons, and an empty one says nothing."""
    texts: list[object] = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("expected texts such as Put:delay=50ms,fraction=0.1")
    return tuple(Injection.parse(one) for text in texts for one in str(text).split(";") if one.strip())


def _delay(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", text, re.ASCII)
    if match is None:
        raise ValueError(f"delay is {text!r}; it must be like 50ms or 1.5s")
    return round(float(match[1]) * (1000 if match[2] == "s" else 1))


def _code(text: str) -> StatusCode:
    if text not in _CODES:
        raise ValueError(f"code is {text!r}; it must be one of {', '.join(_CODES)}")
    return _CODES[text]


def _fraction(text: str) -> float:
    if re.fullmatch(r"\d{0,9}\.?\d{1,9}", text, re.ASCII) is None:
        raise ValueError(f"fraction is {text!r}; it must be a number such as 0.1")
    return float(text)


def _after(text: str) -> bool:
    if text:
        raise ValueError("after has no value")
    return True


_READERS: dict[str, tuple[str, Callable[[str], int | float | bool | StatusCode]]] = {
    "delay": ("delay_ms", _delay),
    "code": ("code", _code),
    "fraction": ("fraction", _fraction),
    "after": ("after", _after),
}


class Injections:
    """What is injected now. Lives on the event loop."""

    def __init__(self, first: tuple[Injection, ...] | None) -> None:
        self.active = first or ()
        """Empty where calls are left alone: the one thing they look at."""
        self._allowed = first is not None

    def replace(self, injections: tuple[Injection, ...]) -> tuple[Injection, ...]:
        """Put these in place of those that were there, which are returned."""
        if not self._allowed:
            raise NotAllowedError("the daemon was started without --inject")
        if len(injections) > MOST:
            raise ValueError(f"there are {len(injections)} injections; at most {MOST} are taken")
        before, self.active = self.active, injections
        return before

    async def around(self, method: str, call: Callable[[], Awaitable[R]]) -> R:
        """Make a call, or not, as the injections have it."""
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
