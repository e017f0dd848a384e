"""SIGHUP: the configuration is read again, and what can change without a restart does.

A file that is no use changes nothing, and what takes a restart is named. The service manager is told when this begins
and when it is done (systemd's `Type=notify-reload`).
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
"""Settings that change without a restart. The files of certificates are read again at each handshake anyway."""


async def resized(store: Store, old: Config, new: Config) -> Config:
    """The new configuration, once the store has its memory; with the old one's memory where that cannot be."""
    if new.memory == old.memory:
        return new
    try:
        await store.call(lambda: store.resize(new.memory))
    except (TmemdError, ValueError) as error:
        log.warning("memory stays as it was: %s", error)
        return replace(new, memory=old.memory)
    return new


class Reload:
    """Reads the configuration again when called, one time after another, once `begin` said whom to tell."""

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        """`config` is what `read` gave first."""
        self._first = self._given = config
        self.config = config
        """What is in force."""
        self._read = read
        self._apply: Callable[[Config], Awaitable[Config]] | None = None
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        self._asked.set()

    def begin(self, apply: Callable[[Config], Awaitable[Config]]) -> None:
        """`apply` is given what is to be in force, and returns what is."""
        self._apply = apply
        self._task = asyncio.create_task(self._go_on())

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _go_on(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            notify_reloading()
            try:
                await self._once()
            except (TmemdError, ValueError, OSError) as error:
                log.error("the configuration stays as it was: %s", error)
            except Exception:
                log.exception("the configuration could not be read again")
            notify("READY=1")

    async def _once(self) -> None:
        assert self._apply is not None
        given = await asyncio.to_thread(self._read)
        new = [name for name in OPTIONS if getattr(given, name) != getattr(self._given, name)]
        live = {name: getattr(given, name) for name in new if name in LIVE}
        config = replace(self.config, **live)
        self.config = await self._apply(config)
        self._given = given
        log.info("the configuration was read again: %s", f"changed {', '.join(live)}" if live else "nothing to change")
        waiting = [name for name in OPTIONS if name not in LIVE and getattr(given, name) != getattr(self._first, name)]
        if waiting:
            log.warning("these settings take a restart: %s", ", ".join(waiting))
