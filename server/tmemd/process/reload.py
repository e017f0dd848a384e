"""SIGHUP: reloads the configuration, and applies what can change without a restart.

An invalid file changes nothing, and settings that need a restart are logged. The service manager is notified of the
beginning and the end (systemd's `Type=notify-reload`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from tmemd.base.errors import TmemdError
from tmemd.base.logs import log
from tmemd.config.settings import OPTIONS
from tmemd.process.systemd import notify, notify_reloading

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tmemd.config.settings import Config
    from tmemd.store.api import Store

LIVE = frozenset(
    {
        "admins",
        "clients",
        "drain",
        "log_format",
        "log_level",
        "max_client_calls",
        "max_sessions",
        "memory",
        "metrics_clients",
        "session_idle",
    }
)
"""Settings that change without a restart. Certificates are checked at each handshake anyway."""


async def resize(store: Store, old: Config, new: Config) -> Config:
    """Resize the store; returns the new configuration, with the old memory if resizing failed."""
    if new.memory == old.memory:
        return new
    try:
        await store.call(lambda: store.resize(new.memory))
    except (TmemdError, ValueError) as error:
        log.warning("memory was not changed: %s", error)
        return replace(new, memory=old.memory)
    return new


class Reload:
    """Reloads the configuration whenever it is called, one reload at a time, after `begin`."""

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        """`config` is what `read` returned first."""
        self._first = self._given = config
        self.config = config
        """The configuration in force."""
        self._read = read
        self._apply: Callable[[Config], Awaitable[Config]] | None = None
        self._requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        self._requested.set()

    def begin(self, apply: Callable[[Config], Awaitable[Config]]) -> None:
        """`apply` receives the new configuration and returns what is in force."""
        self._apply = apply
        self._task = asyncio.create_task(self._run())

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self._requested.wait()
            self._requested.clear()
            notify_reloading()
            try:
                await self._once()
            except (TmemdError, ValueError, OSError) as error:
                log.error("the configuration was not changed: %s", error)
            except Exception:
                log.exception("the configuration could not be reloaded")
            notify("READY=1")

    async def _once(self) -> None:
        assert self._apply is not None
        given = await asyncio.to_thread(self._read)
        new = [name for name in OPTIONS if getattr(given, name) != getattr(self._given, name)]
        live = {name: getattr(given, name) for name in new if name in LIVE}
        config = replace(self.config, **live)
        self.config = await self._apply(config)
        self._given = given
        log.info("configuration reloaded: %s", f"changed {', '.join(live)}" if live else "nothing changed")
        waiting = [name for name in OPTIONS if name not in LIVE and getattr(given, name) != getattr(self._first, name)]
        if waiting:
            log.warning("these settings need a restart: %s", ", ".join(waiting))
