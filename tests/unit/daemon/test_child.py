"""A worker that says nothing for long is taken to hang; the supervisor's own standing still is not held against it."""

import asyncio
import time
from typing import Any

import pytest

from tests.lib.support import PATIENCE
from tmemd.telemetry.counters import Counts
from tmemd.workers import child

LIMIT = 1


class Process:
    """As asyncio has one."""

    def __init__(self) -> None:
        self.killed = asyncio.Event()

    def kill(self) -> None:
        self.killed.set()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_LISTEN", LIMIT / 100)


def listening(limit: int) -> tuple[Any, Process, asyncio.Task[None]]:
    process: Any = Process()
    held = child.Child(0, 0, limit, lambda *_: None)
    held.ready.set()
    return held, process, asyncio.create_task(held._listen(process))


async def _speak(held: Any) -> None:
    while True:
        held._take({"counted": 0, "counts": Counts().dump()})
        await asyncio.sleep(0.001)


def test_one_that_is_silent_is_killed_and_one_that_speaks_is_not() -> None:
    async def run() -> None:
        _, silent, _ = listening(LIMIT)
        speaks, spoken, task = listening(LIMIT)
        speaking = asyncio.create_task(_speak(speaks))
        await asyncio.wait_for(silent.killed.wait(), PATIENCE)
        assert not spoken.killed.is_set()
        speaking.cancel()
        await asyncio.wait_for(spoken.killed.wait(), PATIENCE)
        await task

    asyncio.run(run())


def test_time_in_which_the_supervisor_stood_still_does_not_count() -> None:
    async def run() -> None:
        held, process, task = listening(LIMIT)
        speaking = asyncio.create_task(_speak(held))
        await asyncio.sleep(0.05)
        time.sleep(LIMIT * 1.5)  # as if stopped: nobody was heard meanwhile
        await asyncio.sleep(0.05)
        assert not process.killed.is_set()
        speaking.cancel()
        task.cancel()

    asyncio.run(run())


def test_without_a_limit_nobody_is_killed() -> None:
    async def run() -> None:
        _, never, task = listening(0)
        _, silent, _ = listening(LIMIT)
        await asyncio.wait_for(silent.killed.wait(), PATIENCE)
        assert not never.killed.is_set()
        task.cancel()

    asyncio.run(run())
