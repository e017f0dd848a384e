"""Calls of many tasks at once, put together into batches and kept in order.

The rules, of one pool:

- Of two operations that have a key in common, and of which one changes it, the one that was called first has been
  answered before the other is sent. So what comes of operations on a key is what comes of them one by one, in the order
  of their calls. Nothing less would do: calls on their way overtake each other, and any of them may be sent again.
- Small gets, and small puts, of one object that were called one after another go as one batch. In a batch of puts, and
  of gets that take pages out, no key is there twice. (A flush answers with a sum, which nobody could divide.)
- Nothing waits for company. What has been called by the next turn of the event loop goes; once `_WINDOW` batches are on
  their way, what is called meanwhile goes when one of them is answered.
- A caller that is cancelled leaves the others of its batch alone. What it asked for may still be carried out, and until
  that is over no later operation on its keys is sent.

A lane is the operations on one object, in the order of their calls. Whoever cannot go holds up the lane behind it.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tmem._model.errors import CorruptPageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from typing_extensions import Buffer

    from tmem._protocol.operations import Steps
    from tmem._protocol.page_ops import RemotePool

SMALL = 64
"""Most pages of a call that may share a batch."""

OTHER_LOOP = "this store belongs to another event loop, or to the parent of this process: connect another one here"

_WINDOW = 16

_Keys: TypeAlias = "Collection[int] | None"
"""Indices; None is the whole object."""


@dataclass(slots=True, eq=False)
class _Call:
    """An operation: `done` gets what came of it, or, where it goes alone, that its turn has come."""

    kind: Literal["get", "put", "alone"]
    keys: _Keys
    changes: bool
    done: asyncio.Future[Any]
    pages: dict[int, Buffer] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Flight:
    """Calls that are in flight together."""

    calls: list[_Call]
    keys: _Keys
    changes: bool


class _Lane:
    """The operations on one object."""

    __slots__ = ("flights", "oid", "queued", "waiting")

    def __init__(self, oid: bytes) -> None:
        self.oid = oid
        self.waiting: deque[_Call] = deque()
        self.flights: list[_Flight] = []
        self.queued = False

    def take(self, most: int) -> _Flight | None:
        """The next that may go, together, with at most so many pages; None where there is none."""
        while self.waiting and self.waiting[0].done.cancelled():
            self.waiting.popleft()
        if not self.waiting or self._blocked(self.waiting[0]):
            return None
        first = self.waiting.popleft()
        flight = _Flight([first], first.keys, first.changes)
        if first.kind != "alone":
            self._fill(flight, set(first.keys or ()), most)
        self.flights.append(flight)
        return flight

    def _fill(self, flight: _Flight, keys: set[int], most: int) -> None:
        kind = flight.calls[0].kind
        while self.waiting and self.waiting[0].kind == kind:
            call = self.waiting[0]
            if not call.done.cancelled():
                if flight.changes and not keys.isdisjoint(call.keys or ()):
                    break
                if len(keys) + len(call.keys or ()) > most or self._blocked(call):
                    break
                keys.update(call.keys or ())
                flight.calls.append(call)
            self.waiting.popleft()
        flight.keys = keys

    def _blocked(self, call: _Call) -> bool:
        return any((call.changes or flight.changes) and _meet(call.keys, flight.keys) for flight in self.flights)


class Lanes:
    """All lanes of one pool. Belongs to one event loop."""

    def __init__(self, pool: RemotePool, run: Callable[[Steps[Any]], Awaitable[Any]]) -> None:
        self.pool = pool
        self._run = run
        self._lanes: dict[bytes, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._flying = 0
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def get(self, oid: bytes, indices: list[int]) -> dict[int, bytes]:
        """A small get."""
        pages: dict[int, bytes] = await self._enter(oid, _Call("get", indices, self.pool.session.gives_away, _future()))
        return pages

    async def put(self, oid: bytes, pages: dict[int, Buffer]) -> bytes:
        """A small put; one code a page."""
        codes: bytes = await self._enter(oid, _Call("put", pages.keys(), True, _future(), pages))
        return codes

    @asynccontextmanager
    async def turn(self, oid: bytes, keys: _Keys, *, changes: bool) -> AsyncIterator[None]:
        """For an operation that goes alone: inside the block it is its turn."""
        call = _Call("alone", keys, changes, _future())
        try:
            flight = await self._enter(oid, call)
        except asyncio.CancelledError:
            if call.done.done() and not call.done.cancelled():
                self._landed(self._lanes[oid], call.done.result())
            raise
        try:
            yield
        finally:
            self._landed(self._lanes[oid], flight)

    def _enter(self, oid: bytes, call: _Call) -> asyncio.Future[Any]:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(OTHER_LOOP)
        lane = self._lanes.get(oid)
        if lane is None:
            lane = self._lanes[oid] = _Lane(oid)
        lane.waiting.append(call)
        self._queue(lane)
        return call.done

    def _queue(self, lane: _Lane) -> None:
        if not lane.queued:
            lane.queued = True
            self._ready.append(lane)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        """Send what can go."""
        while self._ready and self._flying < _WINDOW:
            lane = self._ready.popleft()
            lane.queued = False
            flight = lane.take(self.pool.session.batch)
            if flight is not None:
                self._take_off(lane, flight)
                self._queue(lane)
            elif not (lane.waiting or lane.flights):
                del self._lanes[lane.oid]
        self._scheduled = False

    def _take_off(self, lane: _Lane, flight: _Flight) -> None:
        self._flying += 1
        if flight.calls[0].kind == "alone":
            flight.calls[0].done.set_result(flight)
            return
        task = asyncio.get_running_loop().create_task(self._fly(lane, flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _landed(self, lane: _Lane, flight: _Flight) -> None:
        self._flying -= 1
        lane.flights.remove(flight)
        self._queue(lane)

    async def _fly(self, lane: _Lane, flight: _Flight) -> None:
        carry_out = self._get if flight.calls[0].kind == "get" else self._put
        try:
            await carry_out(lane.oid, flight.calls)
        except Exception as error:
            for call in flight.calls:
                _fail(call, error)
        finally:
            for call in flight.calls:
                call.done.cancel()
            self._landed(lane, flight)

    async def _get(self, oid: bytes, calls: list[_Call]) -> None:
        wanted = dict.fromkeys(index for call in calls for index in call.keys or ())
        corrupt: frozenset[int] = frozenset()
        try:
            pages = await self._run(self.pool.get(oid, wanted))
        except CorruptPageError as error:
            pages, corrupt = error.pages, frozenset(error.indices)
        for call in calls:
            own = {index: pages[index] for index in call.keys or () if index in pages}
            bad = [index for index in call.keys or () if index in corrupt]
            if bad:
                _fail(call, CorruptPageError(own, bad))
            elif not call.done.done():
                call.done.set_result(own)

    async def _put(self, oid: bytes, calls: list[_Call]) -> None:
        pages = {index: page for call in calls for index, page in call.pages.items()}
        codes = await self._run(self.pool.put(oid, pages))
        start = 0
        for call in calls:
            end = start + len(call.pages)
            if not call.done.done():
                call.done.set_result(codes[start:end])
            start = end


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _fail(call: _Call, error: Exception) -> None:
    """Each caller gets an error of its own: one raised twice would gather the traces of both."""
    if not call.done.done():
        call.done.set_exception(copy.copy(error))


def _meet(one: _Keys, other: _Keys) -> bool:
    """Whether there is a key in both."""
    if one is None or other is None:
        return True
    if isinstance(one, range) and isinstance(other, range):
        return max(one.start, other.start) < min(one.stop, other.stop)
    few, many = (one, other) if len(one) <= len(other) else (other, one)
    lookup: Any = set(many) if isinstance(many, list) else many
    return any(index in lookup for index in few)
