"""The asynchronous client behind the face of the synchronous one, so that one test serves both."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import tmem.aio

if TYPE_CHECKING:
    from collections.abc import Iterator


class Blocking:
    """An AsyncStore or AsyncPool whose methods block, with Store's and Pool's properties."""

    _PROPERTIES = frozenset({"arena", "frozen", "memory", "settings"})

    def __init__(self, runner: asyncio.Runner, thing: Any) -> None:
        object.__setattr__(self, "_runner", runner)
        object.__setattr__(self, "_thing", thing)

    def __getattr__(self, name: str) -> Any:
        if name in ("quota", "weight"):
            return getattr(self.settings, name)
        found = getattr(self._thing, name)
        if name in self._PROPERTIES:
            return self._runner.run(found())
        return self._blocking(found) if inspect.iscoroutinefunction(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        self._runner.run(getattr(self._thing, f"set_{name}")(value))

    def _blocking(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return self._wrapped(self._runner.run(method(*args, **options)))

        return call

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._wrapped(item) for item in result]
        return Blocking(self._runner, result) if isinstance(result, tmem.aio.AsyncPool) else result


@contextlib.contextmanager
def blocking(address: str, **options: Any) -> Iterator[Any]:
    """An asynchronous connection, as a Store."""

    async def connect() -> tmem.aio.AsyncStore:
        return tmem.aio.connect(address, **options)

    with asyncio.Runner() as runner:
        store = Blocking(runner, runner.run(connect()))
        try:
            yield store
        finally:
            store.close()
