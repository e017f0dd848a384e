"""The supervisor of `--workers`: serves no pages itself, but starts the workers and replaces those that die.

Worker k listens on the port of `listen` + k. All workers attach to one arena, and so does the supervisor, to read its
statistics. A client stays with one worker, and a worker's process has ended before its replacement serves: so no
message to a dead process can land after the client's next one. Workers end with the supervisor.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

from tmemd.base.logs import log, log_to_stderr
from tmemd.base.parsers import join_address, split_address
from tmemd.base.signals import on_signals
from tmemd.base.startup import unserved_status
from tmemd.config.settings import dump
from tmemd.process.arena_lock import GRACE, arena_lock, is_older
from tmemd.process.reload import Reload, resize
from tmemd.process.shared_arena import shared_arena
from tmemd.process.systemd import notify
from tmemd.store.engine_store import EngineStore, client_name
from tmemd.telemetry.counters import Counts
from tmemd.workers.child import Child
from tmemd.workers.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tmemd.base.signals import StopEvent
    from tmemd.config.settings import Config
    from tmemd.store.api import Store
    from tmemd.telemetry.processes import Worker
    from tmemd.workers.control_channel import Message

    Task = asyncio.Task[None]

_EVERY = 1.0
"""Seconds between reads of the workers' counts."""
_LONGEST = 5.0
"""Seconds a scrape may wait for the workers' counts."""


class Supervisor:
    """All workers, and the metrics of all."""

    def __init__(self, config: Config, inherited: tuple[int, ...] = ()) -> None:
        """`inherited`: descriptors that the workers need to open the arena."""
        self._config = config
        self._inherited = inherited
        self._host, port = split_address(config.listen)
        ports = [int(port) + number if int(port) else 0 for number in range(config.workers)]
        self._children = [Child(number, port, config.worker_timeout, self._heard) for number, port in enumerate(ports)]
        self._told: list[Worker] = []
        self._relay = Relay()
        self._tasks: set[asyncio.Task[None]] = set()
        self._exposition: Any = None
        self.metrics_url: str | None = None
        self._announced = False
        self._draining = False

    @property
    def addresses(self) -> list[str]:
        return [join_address(self._host, child.port) for child in self._children]

    async def serve(self, announce: Callable[[Supervisor], None], stopping: StopEvent, reload: Reload) -> int:
        """Serve until `stopping`; the exit status. `announce` is called once all workers serve.

        Raises:
            WorkerError: A worker cannot serve; the others were stopped.
        """
        self._loop = asyncio.get_running_loop()
        try:
            with closing(EngineStore(self._config)) as store, arena_lock(self._config.arena) as right:
                if not await right.acquire(stopping, self._config.drain + GRACE):
                    return unserved_status(stopping.signum)
                for child in self._children:
                    await child.spawn(*right.descriptors, *self._inherited)
                held = [self._task(child.hold(lambda: self._settings(store))) for child in self._children]
                try:
                    await self._serve(store, announce, held, self._task(_until(stopping)), reload)
                finally:
                    reload.end()
                    log.info("stopping: %s; calls in flight have %d s", self._why(stopping), self._config.drain)
                    notify("STOPPING=1")
                    right.announce_stop(self._config.drain + GRACE)
                    await self._stop(held)
                for task in held:
                    task.result()
                log.info("stopped")
                return 0 if self._announced else unserved_status(stopping.signum)
        finally:
            for child in self._children:
                await child.kill()

    @staticmethod
    def _why(stopping: StopEvent) -> str:
        return stopping.why if stopping.is_set() else "a worker cannot serve"

    async def counts(self) -> Counts:
        """The counts of all workers, including those that died."""
        total = Counts()
        for counts in await asyncio.gather(*(child.counts() for child in self._children)):
            total.add(counts)
        return total

    async def _serve(
        self,
        store: Store,
        announce: Callable[[Supervisor], None],
        held: list[Task],
        stopped: Task,
        reload: Reload,
    ) -> None:
        """Serve until asked to stop, or until a worker cannot be kept running."""
        ready = self._task(_until(*(child.ready for child in self._children)))
        await asyncio.wait((*held, ready, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            return
        if self._config.metrics is not None:
            self.metrics_url, self._exposition = await asyncio.to_thread(self._expose, store)
        announce(self)
        self._announced = True
        reload.begin(lambda config: self._reconfigure(store, config))
        self._task(self._look())
        await asyncio.wait((*held, stopped), return_when=asyncio.FIRST_COMPLETED)

    async def _stop(self, held: list[Task]) -> None:
        """Stop the workers in order, and kill those that do not end."""
        self._draining = True
        for child in self._children:
            child.stop()
        _, hanging = await asyncio.wait(held, timeout=self._config.drain + GRACE)
        if hanging:
            log.warning("%d workers did not stop in time and were killed", len(hanging))
            for child in self._children:
                await child.kill()
            await asyncio.wait(held)
        for task in self._tasks - set(held):
            task.cancel()
        if self._exposition is not None:
            await asyncio.to_thread(self._exposition.shutdown)
            self._exposition.server_close()

    async def _reconfigure(self, store: Store, config: Config) -> Config:
        """Apply new settings, here and in the workers."""
        self._config = config = await resize(store, self._config, config)
        log_to_stderr(style=config.log_format, level=config.log_level)
        if self._exposition is not None:
            from tmemd.telemetry.collector import readers

            self._exposition.readers = readers(config)
        settings = self._settings(store)
        for child in self._children:
            child.send(settle=settings)
        return config

    def _settings(self, store: Store) -> str:
        """The settings for a worker, with the current memory."""
        return dump(replace(self._config, memory=store.info()["memory"]))

    def _expose(self, store: Store) -> tuple[str, Any]:
        from tmemd.telemetry.collector import expose

        def counted() -> Counts:
            return asyncio.run_coroutine_threadsafe(self.counts(), self._loop).result(_LONGEST)

        return expose(store, counted, self._config, client_name, self._unready)

    def _unready(self) -> str:
        """Clients know the first worker's port."""
        if self._draining:
            return "stopping"
        return "" if self._children[0].worker.process else "worker 0 is being replaced"

    async def _look(self) -> NoReturn:
        while True:
            await asyncio.sleep(_EVERY)
            await self.counts()
            self._tell()

    def _heard(self, child: Child, message: Message) -> None:
        if not message and child.number == 0:
            self._relay.gone()
        if "total" in message:
            self._task(self._answer(child, message["total"]))
        elif "call" in message:
            self._relay.ask(child, self._children[0], message)
        elif "carried" in message:
            self._relay.answered(message)
        elif "ready" in message or not message:
            self._tell()

    async def _answer(self, child: Child, number: int) -> None:
        child.send(total=number, counts=(await self.counts()).dump())

    def _tell(self) -> None:
        """Send all workers the list of workers, if it has changed."""
        workers = [child.worker for child in self._children]
        if workers != self._told:
            self._told = workers
            for child in self._children:
                child.send(workers=[asdict(worker) for worker in workers])

    def _task(self, work: Coroutine[Any, Any, None]) -> Task:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _until(*events: asyncio.Event) -> None:
    for event in events:
        await event.wait()


async def supervise(config: Config, announce: Callable[[Supervisor], None], read: Callable[[], Config]) -> int:
    """Run workers until SIGTERM or SIGINT; the exit status. `announce` is called once all serve.

    `read` reloads the configuration.

    Raises:
        WorkerError: A worker cannot serve.
    """
    reload = Reload(config, read)
    stopping = on_signals(signal.SIGTERM, signal.SIGINT, reload=reload)
    with arena_lock(config.arena if is_older(config.arena) else None) as earlier:
        if not await earlier.acquire(stopping, config.drain + GRACE):
            return unserved_status(stopping.signum)
    with shared_arena(config.arena) as (arena, inherited):
        reload.config = replace(config, arena=arena)
        return await Supervisor(reload.config, inherited).serve(announce, stopping, reload)
