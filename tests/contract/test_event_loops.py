"""Contract of every asynchronous client: it is made anywhere, and belongs to the loop that uses it first."""

from __future__ import annotations

import asyncio

import pytest

import tmem.aio
from tests.lib.daemon import daemon


def test_a_store_is_made_before_its_loop_runs_and_is_for_that_one() -> None:
    async def put(store: tmem.aio.AsyncStore) -> bool:
        outcomes = await (await store.pool("loops")).put(1, {0: bytes(4096)})
        return outcomes[0].stored

    async def whole(store: tmem.aio.AsyncStore) -> None:
        async with store:
            assert await put(store)

    with daemon("--memory", "32MiB") as running:
        asyncio.run(whole(tmem.aio.connect(running.address)))
        store = tmem.aio.connect(running.address)
        with asyncio.Runner() as first, asyncio.Runner() as second:
            assert first.run(put(store))
            with pytest.raises(RuntimeError, match="another event loop"):
                second.run(put(store))
            assert first.run(put(store))
            first.run(store.close())


def test_an_unused_store_can_be_closed() -> None:
    asyncio.run(tmem.aio.connect("127.0.0.1:7717").close())
