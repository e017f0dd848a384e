"""Wraps every call: identifies its client, maps its errors to a status, counts its time and outcome."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from tmemd.base.errors import InjectedError, UnavailableError, status_of
from tmemd.base.logs import RateLimitedErrors
from tmemd.rpc.registration import check_readable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from grpc import StatusCode
    from grpc.aio import ServicerContext

    from tmemd.config.faults import Injections
    from tmemd.security.identity import Client, Identities
    from tmemd.store.lock_waits import LockRetry
    from tmemd.telemetry.counters import Counts

_faults = RateLimitedErrors()


class _Service(Protocol):
    @property
    def counts(self) -> Counts: ...
    @property
    def identities(self) -> Identities: ...
    @property
    def injections(self) -> Injections: ...
    @property
    def lock_retry(self) -> LockRetry: ...


S = TypeVar("S", bound=_Service)
Q = TypeVar("Q")
R = TypeVar("R")


def rpc(
    handler: Callable[[S, Q, Client], Awaitable[R]],
) -> Callable[[S, Q, ServicerContext[Any, Any]], Coroutine[Any, Any, R]]:
    """Make a unary method of the function that does its work."""
    method = handler.__name__

    @functools.wraps(handler)
    async def answer(self: S, request: Q, context: ServicerContext[Any, Any]) -> R:
        start = time.perf_counter()
        try:
            client = self.identities.of(context)
            check_readable(request)
            call_limits = self.identities.call_limits
            call_limits.begin(client.name)
            try:
                if self.injections.active:
                    response = await self.injections.around(method, lambda: handler(self, request, client))
                else:
                    response = await handler(self, request, client)
            except UnavailableError as error:
                response = await self.lock_retry.retry(error, lambda: handler(self, request, client))
            finally:
                call_limits.end(client.name)
        except Exception as error:
            code, text = explain(method, error)
            self.counts.answered(method, code.name, time.perf_counter() - start)
            await context.abort(code, text)
        self.counts.answered(method, "OK", time.perf_counter() - start)
        return response

    return answer


async def identify(service: _Service, method: str, context: ServicerContext[Any, Any]) -> Client:
    """The client of a stream, which ends if the client cannot be identified."""
    try:
        return service.identities.of(context)
    except Exception as error:
        await fail(service, method, context, error)


async def fail(service: _Service, method: str, context: ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End a stream with an error."""
    code, text = explain(method, error)
    service.counts.answered(method, code.name, 0.0)
    await context.abort(code, text)


def explain(method: str, error: Exception) -> tuple[StatusCode, str]:
    """The status and text of an error. An internal one is logged with its trace."""
    code, text = status_of(error)
    if code.name == "INTERNAL" and not isinstance(error, InjectedError):
        _faults.log(f"{method} failed", error)
    return code, text
