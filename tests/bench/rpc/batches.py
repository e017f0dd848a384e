"""Put and get through synchronous clients: pages a second, and what the server's processors had to do for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from tests.bench.corpus import PAGE
from tests.bench.figures import Figure
from tests.bench.rpc.clients import BATCH, Bulk, Client, MemcachedLz4, RedisLz4, Tmem
from tests.bench.rpc.setting import Setting, against_better, peers
from tests.bench.rpc.turns import in_turn
from tests.bench.servers import Redis, Server, Tmemd

T = TypeVar("T")

_PAGES = 8192
_LARGE = 1024
_MILLION = 1_000_000


@dataclass(frozen=True)
class Sample:
    """One pass over the pages."""

    pages_per_second: float
    cpu_seconds_per_million: float


@dataclass(frozen=True)
class _Pair:
    client: Client
    server: Server


def measure(setting: Setting, *flags: str, suffix: str = "") -> Iterator[Figure]:
    """One call at a time, then large calls, against a daemon with these flags."""
    with Tmemd(*flags) as daemon, peers() as others, contextlib.ExitStack() as stack:
        ours = _Pair(Tmem(daemon.address), daemon)
        theirs = [_Pair(client_of(server), server) for server in others.values()]
        for pair in (ours, *theirs):
            stack.callback(pair.client.close)
        yield from _one_at_a_time(setting, ours, theirs, suffix)
        yield from _large_calls(setting, ours, theirs, suffix)


def client_of(server: Server) -> Client:
    """A client of a peer."""
    return RedisLz4(server.port) if isinstance(server, Redis) else MemcachedLz4(server.port)


def _one_at_a_time(setting: Setting, ours: _Pair, theirs: list[_Pair], suffix: str) -> Iterator[Figure]:
    batches = [setting.pages.batch(first, BATCH) for first in range(0, setting.scaled(_PAGES), BATCH)]
    everybody = [ours, *theirs]
    for pair in everybody:
        _check(pair.client, batches)
    works = {"put": _put_batches, "get": _get_batches}
    for operation, work in works.items():
        taken = _measured(setting, everybody, work, batches)
        yield from _figures(setting, f"{operation}.batch64{suffix}", f"cpu.{operation}.batch64{suffix}", taken, ours)


def _large_calls(setting: Setting, ours: _Pair, theirs: list[_Pair], suffix: str) -> Iterator[Figure]:
    pieces = {first: setting.pages.range(first, _LARGE) for first in range(0, setting.scaled(_PAGES), _LARGE)}
    able = [ours, *(pair for pair in theirs if hasattr(pair.client, "put_large"))]
    works = {"put": _put_large, "get": _get_large}
    for operation, work in works.items():
        taken = _measured(setting, able, work, pieces)
        yield from _figures(setting, f"{operation}.large1024{suffix}", None, taken, ours)


def _measured(setting: Setting, pairs: list[_Pair], work: Callable[[Any, T], int], given: T) -> dict[str, list[Sample]]:
    runs = {pair.client.name: partial(_sample, pair.server, partial(work, pair.client, given)) for pair in pairs}
    in_turn(runs, 1)
    return in_turn(runs, setting.pairs)


def _sample(server: Server, work: Callable[[], int]) -> Sample:
    cpu, begun = server.cpu_seconds(), time.perf_counter()
    pages = work()
    seconds = time.perf_counter() - begun
    return Sample(pages / seconds, (server.cpu_seconds() - cpu) / pages * _MILLION)


def _figures(
    setting: Setting, speed: str, cpu: str | None, taken: dict[str, list[Sample]], ours: _Pair
) -> Iterator[Figure]:
    rates = {name: [sample.pages_per_second for sample in samples] for name, samples in taken.items()}
    mine = rates.pop(ours.client.name)
    yield from against_better(setting, speed, "pages/s", mine, rates, more_is_better=True)
    if cpu is not None:
        costs = {name: [sample.cpu_seconds_per_million for sample in samples] for name, samples in taken.items()}
        mine = costs.pop(ours.client.name)
        yield from against_better(setting, cpu, "CPU s/million pages", mine, costs, more_is_better=False)


def _check(client: Client, batches: list[dict[int, bytes]]) -> None:
    """Who does not give back what it was given is not measured."""
    for batch in batches:
        if not client.put(batch) or client.get(list(batch)) != batch:
            raise RuntimeError(f"{client.name} does not give back the pages it was given")


def _put_batches(client: Client, batches: list[dict[int, bytes]]) -> int:
    for batch in batches:
        client.put(batch)
    return sum(map(len, batches))


def _get_batches(client: Client, batches: list[dict[int, bytes]]) -> int:
    return sum(len(client.get(list(batch))) for batch in batches)


def _put_large(client: Bulk, pieces: dict[int, bytes]) -> int:
    for first, data in pieces.items():
        client.put_large(first, data)
    return sum(map(len, pieces.values())) // PAGE


def _get_large(client: Bulk, pieces: dict[int, bytes]) -> int:
    return sum(len(client.get_large(first, len(data) // PAGE)) for first, data in pieces.items()) // PAGE
