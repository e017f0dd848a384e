"""Put and get through asynchronous clients, several calls under way at once on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Protocol

import tmem.aio
from bench.lib.figures import Figure
from bench.lib.servers import Redis, Tmemd
from bench.rpc.clients import BATCH, pack, unpack
from bench.rpc.setting import Setting, against_better, say
from bench.rpc.turns import in_turn

_TASKS = 8
_PAGES = 8192


class _Client(Protocol):
    name: str

    async def put(self, pages: dict[int, bytes]) -> bool: ...

    async def get(self, numbers: list[int]) -> dict[int, bytes]: ...


class _Tmem:
    name = "tmem.aio"

    def __init__(self, pool: tmem.aio.AsyncPool) -> None:
        self._pool = pool

    async def put(self, pages: dict[int, bytes]) -> bool:
        return all(outcome.stored for outcome in (await self._pool.put(1, pages)).values())

    async def get(self, numbers: list[int]) -> dict[int, bytes]:
        return await self._pool.get(1, numbers)


class _RedisLz4:
    name = "redis.asyncio + lz4"

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    async def put(self, pages: dict[int, bytes]) -> bool:
        return bool(await self._redis.mset({number: pack(page) for number, page in pages.items()}))

    async def get(self, numbers: list[int]) -> dict[int, bytes]:
        blocks = await self._redis.mget(numbers)
        return {number: unpack(block) for number, block in zip(numbers, blocks, strict=True) if block is not None}


def measure(setting: Setting) -> Iterator[Figure]:
    """Batches of 64 pages, eight tasks at once. pymemcache has no asynchronous client."""
    reason = Redis.missing()
    if reason is not None:
        say(f"redis: skipped, {reason}")
        return
    with Tmemd() as daemon, Redis() as server, asyncio.Runner() as runner:
        clients, close = runner.run(_connect(daemon.address, server.port))
        try:
            yield from _compared(setting, runner, clients)
        finally:
            runner.run(close())


async def _connect(address: str, port: int) -> tuple[list[_Client], Callable[[], Coroutine[Any, Any, None]]]:
    import redis.asyncio

    stack = contextlib.AsyncExitStack()
    store = await stack.enter_async_context(tmem.aio.connect(address))
    other: Any = await stack.enter_async_context(redis.asyncio.Redis(port=port))
    return [_Tmem(await store.pool("tasks", kind="persistent")), _RedisLz4(other)], stack.aclose


def _compared(setting: Setting, runner: asyncio.Runner, clients: list[_Client]) -> Iterator[Figure]:
    batches = [setting.pages.batch(first, BATCH) for first in range(0, setting.scaled(_PAGES), BATCH)]
    works = {"put.aio": _put, "get.aio": _get}
    for client in clients:
        for batch in batches:
            if not runner.run(_put(client, batch)) or runner.run(client.get(list(batch))) != batch:
                raise RuntimeError(f"{client.name} does not give back the pages it was given")
    for name, work in works.items():
        runs = {client.name: partial(_rate, runner, partial(work, client), batches) for client in clients}
        in_turn(runs, 1)
        taken = in_turn(runs, setting.pairs)
        mine = taken.pop(_Tmem.name)
        yield from against_better(setting, name, "pages/s", mine, taken, more_is_better=True)


async def _put(client: _Client, batch: dict[int, bytes]) -> bool:
    return await client.put(batch)


async def _get(client: _Client, batch: dict[int, bytes]) -> bool:
    return len(await client.get(list(batch))) == len(batch)


def _rate(
    runner: asyncio.Runner, work: Callable[[dict[int, bytes]], Awaitable[bool]], batches: list[dict[int, bytes]]
) -> float:
    """Pages a second when every task takes the next batch as soon as it is done with one."""
    left = iter(batches)

    async def task() -> bool:
        return all([await work(batch) for batch in left])

    async def tasks() -> bool:
        return all(await asyncio.gather(*(task() for _ in range(_TASKS))))

    begun = time.perf_counter()
    if not runner.run(tasks()):
        raise RuntimeError("a batch was not all stored or found")
    return sum(map(len, batches)) / (time.perf_counter() - begun)
