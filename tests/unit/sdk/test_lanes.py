"""Calls of many tasks put together: what comes of them is what comes of them one by one."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tmem
from tests.lib.support import page
from tests.unit.sdk.test_session import AWAY, Client, Server
from tmem._model.settings import PoolOptions
from tmem._protocol.lanes import Lanes
from tmem._protocol.operations import Send, Steps
from tmem._transport.aio_runner import Driver
from tmem.aio import AsyncPool

T = TypeVar("T")
OIDS, INDICES = 2, 6
KINDS: list[PoolOptions] = [
    {"kind": "persistent"},
    {"kind": "ephemeral"},
    {"kind": "ephemeral", "shared": True},
    {"kind": "ephemeral", "inclusive": True},
]
Operation = tuple[Literal["get", "put", "flush", "flush_object", "put_range", "has", "take"], int, tuple[int, ...]]
operations = st.lists(
    st.tuples(
        st.sampled_from(["get", "get", "put", "put", "flush", "flush_object", "put_range", "has", "take"]),
        st.integers(1, OIDS),
        st.lists(st.integers(0, INDICES - 1), min_size=1, max_size=3, unique=True).map(tuple),
    ),
    max_size=40,
)


class Way(Client):
    """The way to a scripted server on which calls overtake each other, as unary calls do."""

    def __init__(self, server: Server, options: PoolOptions, seed: int = 0) -> None:
        super().__init__(server, **options)
        server.takes = self.pool.session.gives_away
        self._random = random.Random(seed)
        self.handle = AsyncPool(self.pool, _Runs(self), Lanes(self.pool, self.run_slowly))

    async def run_slowly(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Send):
                    step = steps.send([await self._arrives(step.method, request) for request in step.requests])
                else:
                    step = steps.send([])
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()

    async def _arrives(self, method: str, request: Any) -> Any:
        for _ in range(self._random.randrange(6)):
            await asyncio.sleep(0)
        answer = self.server.call(method, request)
        for _ in range(self._random.randrange(3)):
            await asyncio.sleep(0)
        return answer


class _Runs(Driver):
    def __init__(self, way: Way) -> None:
        self.run = way.run_slowly  # type: ignore[method-assign]


async def call(pool: AsyncPool, at: int, operation: Operation) -> Any:
    """One operation; pages differ by when they were put."""
    what, oid, indices = operation
    match what:
        case "get":
            return await pool.get(oid, indices)
        case "take":
            return await pool.get(oid, indices, exclusive=True)
        case "put":
            outcomes = await pool.put(oid, {index: page(at * INDICES + index) for index in indices})
            return {index: outcome.replaced for index, outcome in outcomes.items()}
        case "put_range":
            return list(await pool.put_range(oid, 2, page(at * INDICES) + page(at * INDICES + 1)))
        case "flush":
            return await pool.flush(oid, indices)
        case "flush_object":
            return await pool.flush_object(oid)
        case _:
            return await pool.has(oid, 0, INDICES)


@settings(deadline=None, max_examples=60)
@given(operations, st.sampled_from(KINDS), st.integers(0, 2**32))
def test_at_once_or_one_by_one_is_the_same(todo: list[Operation], options: PoolOptions, seed: int) -> None:
    async def one_by_one() -> list[Any]:
        pool = Way(Server(), options).handle
        return [await call(pool, at, operation) for at, operation in enumerate(todo)]

    async def at_once() -> list[Any]:
        pool = Way(Server(), options, seed).handle
        return await asyncio.gather(*(call(pool, at, operation) for at, operation in enumerate(todo)))

    assert asyncio.run(at_once()) == asyncio.run(one_by_one())


def story(options: PoolOptions, told: Any) -> Server:
    server = Server()
    server.batch_limit = 256

    async def tell() -> None:
        way = Way(server, options)
        await told(way.handle)

    asyncio.run(tell())
    return server


def test_small_calls_of_one_turn_are_one_batch() -> None:
    async def told(pool: AsyncPool) -> None:
        await asyncio.gather(*(pool.put(1, {index: page(index)}) for index in range(100)))
        found = await asyncio.gather(*(pool.get(1, [index, 0]) for index in range(100)))
        assert found == [{0: page(0), index: page(index)} for index in range(100)]

    assert story({"kind": "persistent"}, told).log == ["Put", "Get"]


def test_what_is_called_while_the_window_is_full_goes_together() -> None:
    async def told(pool: AsyncPool) -> None:
        first = [asyncio.create_task(pool.put(oid, {0: page(oid)})) for oid in range(16)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = []
        for index in range(20):
            rest.append(asyncio.create_task(pool.put(99, {index: page(index)})))
        await asyncio.gather(*first, *rest)

    assert story({"kind": "persistent"}, told).log == ["Put"] * 17


@pytest.mark.parametrize("cancelled", [0, 1, 2])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4])
def test_a_cancelled_caller_leaves_the_others_alone(cancelled: int, turns: int) -> None:
    async def told(pool: AsyncPool) -> None:
        await pool.put(1, {index: page(index) for index in range(3)})
        tasks = [asyncio.create_task(pool.get(1, [index])) for index in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks[cancelled].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for index in set(range(3)) - {cancelled}:
            assert found[index] == {index: page(index)}
        assert isinstance(found[cancelled], asyncio.CancelledError)
        assert await pool.flush_object(1) == 3

    story({"kind": "persistent"}, told)


@pytest.mark.parametrize("turns", range(8))
def test_a_cancelled_put_never_lands_after_a_later_operation(turns: int) -> None:
    async def told(pool: AsyncPool) -> None:
        for cancelled in (pool.put(1, {7: page(1)}), pool.put_range(1, 7, page(1))):
            task = asyncio.create_task(cancelled)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await pool.flush(1, [7])
            assert await pool.get(1, [7]) == {}

    story({"kind": "persistent"}, told)


def test_an_error_is_every_callers_own() -> None:
    server = Server()

    async def tell() -> None:
        way = Way(server, {"kind": "persistent"})
        server.script["Put"] = [type(AWAY)(9, "frozen solid")]
        tasks = (way.handle.put(1, {index: page(index)}) for index in range(3))
        failed = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in failed] == [tmem.MismatchError] * 3
        assert len(set(map(id, failed))) == 3
        assert (await way.handle.put(1, {0: page(0)}))[0].stored

    asyncio.run(tell())


def test_damaged_pages_are_the_trouble_of_those_who_asked_for_them() -> None:
    server = Server()

    async def tell() -> None:
        pool = Way(server, {"kind": "persistent"}).handle
        await pool.put(1, {index: page(index) for index in range(3)})
        server.damaged = {1}
        found = await asyncio.gather(*(pool.get(1, [index, 2]) for index in range(3)), return_exceptions=True)
        assert found[0] == {0: page(0), 2: page(2)}
        assert found[2] == {2: page(2)}
        assert isinstance(found[1], tmem.CorruptPageError)
        assert (found[1].pages, found[1].indices) == ({2: page(2)}, (1,))

    asyncio.run(tell())


def test_nothing_is_left_when_all_is_done() -> None:
    async def told(pool: AsyncPool) -> None:
        await asyncio.gather(*(pool.put(oid, {0: page(0)}) for oid in range(50)))
        task = asyncio.create_task(pool.get(1, [0]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, pool.has(2, 0, 1), return_exceptions=True)
        for _ in range(20):
            await asyncio.sleep(0)
        lanes = pool._lanes
        assert (lanes._lanes, len(lanes._ready), lanes._flying, lanes._tasks) == ({}, 0, 0, set())

    story({"kind": "persistent"}, told)
