"""When the daemon compacts: for an eighth of the footprint, and again only for a sixteenth more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

from tmemd.store.compaction import SMALLEST, Compactor, unused_part

if TYPE_CHECKING:
    from tmemd.store.api import Store


def stats(empty: float, footprint: int = 100 * SMALLEST) -> dict[str, int]:
    held = round(footprint * (1 - empty))
    return {"footprint_bytes": footprint, "payload_bytes": held - 1000, "slot_header_bytes": 1000}


class Compacted:
    """What a store tells look by look, and after which looks it was compacted."""

    def __init__(self, *looks: tuple[float, float]) -> None:
        self._looks = list(looks)
        self._compacted = False
        self.when: list[int] = []
        self._number = -1
        self.done = asyncio.Event()

    async def call(self, call: Callable[[], None]) -> None:
        self._number += 1
        if self._number == len(self._looks):
            self.done.set()
            return
        self._compacted = False
        call()

    def stats(self) -> dict[str, int]:
        return stats(self._looks[self._number][self._compacted])

    def compact(self) -> dict[str, int]:
        self._compacted = True
        self.when.append(self._number)
        return {}


@pytest.mark.parametrize(
    ("looks", "when"),
    [
        ([(0.12, 0.0)], []),
        ([(0.13, 0.01)], [0]),
        ([(0.50, 0.40), (0.45, 0.0), (0.47, 0.40)], [0, 2]),
        ([(0.50, 0.40), (0.10, 0.0), (0.17, 0.0)], [0, 2]),
    ],
    ids=["too little", "enough", "only for more than was left", "what was left is forgotten when it is used"],
)
def test_when_it_compacts(looks: list[tuple[float, float]], when: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    async def look() -> list[int]:
        store: Any = Compacted(*looks)
        compactor = Compactor(cast("Store", store), 1)
        compactor.start()
        await store.done.wait()
        await compactor.stop()
        return cast("list[int]", store.when)

    async def at_once(_seconds: float, sleep: Callable[[float], Any] = asyncio.sleep) -> None:
        await sleep(0)

    monkeypatch.setattr("tmemd.store.compaction.asyncio.sleep", at_once)
    assert asyncio.run(look()) == when


def test_a_small_store_is_left_alone() -> None:
    assert unused_part(stats(0.9, SMALLEST - 1)) == 0
    assert unused_part(stats(0.9, SMALLEST)) == pytest.approx(0.9, abs=0.01)
