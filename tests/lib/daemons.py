"""A real tmemd in a process of its own, and the asynchronous client seen as a synchronous one."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import tmem.aio
from tests.lib.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY = "listening on "


class Daemon:
    """tmemd, started and stopped by hand; a restarted one listens where it did."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tmemd", "--listen", self.address, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if line.startswith(_READY):
                self.address = line.removeprefix(_READY).strip()
                return
        raise AssertionError(f"tmemd did not start: {''.join(said)}")

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def stop(self) -> None:
        self._process.terminate()
        self._end()

    def _end(self) -> None:
        self._process.wait(timeout=PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def daemon(*options: str) -> Iterator[Daemon]:
    """A tmemd that is gone when the block ends."""
    running = Daemon(*options)
    try:
        yield running
    finally:
        running.kill()


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
