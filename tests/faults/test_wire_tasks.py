"""The law for many tasks of one asynchronous client, whose small calls go together, over a network that misbehaves.

Each task has keys of its own, in objects that all share, and knows what each may hold. With TLS the proxy cannot follow
frames: it holds, cuts and severs, and what it held arrives when its client has gone.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

import tmem.aio
from tests.faults.proxy import Proxy, proxy
from tests.lib.certificates import Authority
from tests.lib.daemon import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

TASKS, KEYS, STEPS, OBJECTS = 16, 3, 30, 2
TIMEOUT = 0.5
SEED = 3
CUTS = (0, 9, 60, 200, 5000)

Way = tuple[Proxy, "grpc.ChannelCredentials | None"]


@pytest.fixture(scope="module", params=["plain", "tls"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    authority = Authority(tmp_path_factory.mktemp("tasks"))
    flags = authority.flags(authority.server()) if request.param == "tls" else []
    credentials = authority.credentials(authority.client("tasks")) if flags else None
    with daemon("--memory=64MiB", "--max-sessions=2", *flags) as running, proxy(running.address) as between:
        yield between, credentials


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("on_unavailable", ["raise", "miss"])
def test_every_answer_to_every_task_is_one_that_the_law_allows(way: Way, crowded: bool, on_unavailable: Any) -> None:
    """Crowded: other pools are opened, so that the session of the tasks' own ends again and again."""
    between, credentials = way

    async def check() -> None:
        store = tmem.aio.connect(
            between.address, timeout=TIMEOUT, credentials=credentials, on_unavailable=on_unavailable
        )
        async with store:
            pool = await _served(lambda: store.pool(f"tasks-{crowded}-{on_unavailable}"))
            dice = random.Random(SEED)
            tasks = [Task(pool, number, random.Random(dice.random())) for number in range(TASKS)]
            chaos = asyncio.create_task(_misbehave(between, store if crowded else None, dice))
            await asyncio.gather(*(task.run() for task in tasks))
            chaos.cancel()
            await asyncio.to_thread(between.release)
            for task in tasks:
                await task.finish()

    asyncio.run(check())


class Task:
    """One task and what each of its keys may hold: None is nothing."""

    def __init__(self, pool: tmem.aio.AsyncPool, number: int, dice: random.Random) -> None:
        self._pool = pool
        self._dice = dice
        keys = [(oid, number * KEYS + at) for oid in range(OBJECTS) for at in range(KEYS)]
        self._may: dict[tuple[int, int], set[bytes | None]] = {key: {None} for key in keys}

    async def run(self) -> None:
        for _ in range(STEPS):
            await self._step()

    async def finish(self) -> None:
        for (oid, index), may in self._may.items():
            assert (await _served(lambda oid=oid, index=index: self._pool.get(oid, [index]))).get(index) in may

    async def _step(self) -> None:
        key = self._dice.choice(list(self._may))
        page = self._dice.randbytes(64) * 64
        kind = self._dice.choice(["put", "put", "get", "get", "take", "flush", "cancelled put"])
        try:
            await self._carry_out(kind, key, page)
        except tmem.UnavailableError:
            if "put" in kind:
                self._may[key].add(page)
            elif kind == "flush":
                self._may[key].add(None)

    async def _carry_out(self, kind: str, key: tuple[int, int], page: bytes) -> None:
        oid, index = key
        if kind == "put":
            stored = (await self._pool.put(oid, {index: page}))[index].stored
            self._may[key] = {page if stored else None}
        elif kind == "cancelled put":
            self._may[key].add(page)
            put = asyncio.create_task(self._pool.put(oid, {index: page}))
            await asyncio.sleep(self._dice.choice([0, 0, 0.001]))
            put.cancel()
            outcome = (await asyncio.gather(put, return_exceptions=True))[0]
            if not isinstance(outcome, BaseException):
                self._may[key] = {page if outcome[index].stored else None}
            else:
                self._may[key].add(None)  # a refusal while the server is away
        elif kind == "flush":
            await self._pool.flush(oid, [index])
            self._may[key] = {None}
        else:
            found = (await self._pool.get(oid, [index], exclusive=kind == "take")).get(index)
            assert found in self._may[key], (kind, key)
            # Where the acknowledgement is lost the page stays.
            self._may[key] = {found, None} if kind == "take" else {found}


async def _misbehave(between: Proxy, store: tmem.aio.AsyncStore | None, dice: random.Random) -> None:
    while True:
        await asyncio.sleep(dice.choice([0.005, 0.02, 0.05]))
        match dice.choice(["cut", "cut", "hold", "sever", "release", "divert", "session"]):
            case "cut":
                between.cut_replies_after(dice.choice(CUTS))
            case "hold":
                between.hold()
                await asyncio.sleep(0.02)  # in which something is sent that arrives when its sender has gone
                between.sever()
            case "sever":
                between.sever()
            case "divert":
                between.divert()
            case "release":
                await asyncio.to_thread(between.release)
            case "session" if store is not None:
                for name in ("one", "two"):
                    try:
                        await store.pool(name)
                    except tmem.UnavailableError:
                        continue


async def _served(call: Any) -> Any:
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except tmem.UnavailableError:
                await asyncio.sleep(0.01)
