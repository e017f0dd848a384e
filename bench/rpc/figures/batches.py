"""Put and get through synchronous clients: pages a second, and what the server's processors had to do for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.lib.servers import Redis, Server, Tmemd
from bench.rpc.clients import Bulk, Client, MemcachedLz4, RedisLz4, Tmem
from bench.rpc.samples import Pair, Sample, batches_of, check, get_batches, measured, put_batches
from bench.rpc.setting import Setting, against_better, peers

_PAGES = 8192
_LARGE = 1024


def measure(setting: Setting) -> Iterator[Figure]:
    """One call at a time, then large calls."""
    with Tmemd() as daemon, peers() as others, contextlib.ExitStack() as stack:
        ours = Pair(Tmem(daemon.address), daemon)
        theirs = [Pair(client_of(server), server) for server in others.values()]
        for pair in (ours, *theirs):
            stack.callback(pair.client.close)
        yield from _one_at_a_time(setting, ours, theirs)
        yield from _large_calls(setting, ours, theirs)


def client_of(server: Server) -> Client:
    """A client of a peer."""
    return RedisLz4(server.port) if isinstance(server, Redis) else MemcachedLz4(server.port)


def _one_at_a_time(setting: Setting, ours: Pair, theirs: list[Pair]) -> Iterator[Figure]:
    batches = batches_of(setting, _PAGES)
    everybody = [ours, *theirs]
    for pair in everybody:
        check(pair.client, batches)
    works = {"put": put_batches, "get": get_batches}
    for operation, work in works.items():
        taken = measured(setting, everybody, work, batches)
        yield from _figures(setting, f"{operation}.batch64", f"cpu.{operation}.batch64", taken, ours)


def _large_calls(setting: Setting, ours: Pair, theirs: list[Pair]) -> Iterator[Figure]:
    pieces = {first: setting.pages.range(first, _LARGE) for first in range(0, setting.scaled(_PAGES), _LARGE)}
    able = [ours, *(pair for pair in theirs if hasattr(pair.client, "put_large"))]
    works = {"put": _put_large, "get": _get_large}
    for operation, work in works.items():
        taken = measured(setting, able, work, pieces)
        yield from _figures(setting, f"{operation}.large1024", None, taken, ours)


def _figures(
    setting: Setting, speed: str, cpu: str | None, taken: dict[str, list[Sample]], ours: Pair
) -> Iterator[Figure]:
    rates = {name: [sample.pages_per_second for sample in samples] for name, samples in taken.items()}
    mine = rates.pop(ours.client.name)
    yield from against_better(setting, speed, "pages/s", mine, rates, more_is_better=True)
    if cpu is not None:
        costs = {name: [sample.cpu_seconds_per_million for sample in samples] for name, samples in taken.items()}
        mine = costs.pop(ours.client.name)
        yield from against_better(setting, cpu, "CPU s/million pages", mine, costs, more_is_better=False)


def _put_large(client: Bulk, pieces: dict[int, bytes]) -> int:
    for first, data in pieces.items():
        client.put_large(first, data)
    return sum(map(len, pieces.values())) // PAGE


def _get_large(client: Bulk, pieces: dict[int, bytes]) -> int:
    return sum(len(client.get_large(first, len(data) // PAGE)) for first, data in pieces.items()) // PAGE
