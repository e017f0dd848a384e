"""One pass over some pages by one client: how fast, and what the server's processors had to do for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from bench.lib.servers import Server
from bench.rpc.clients import BATCH, Client
from bench.rpc.setting import Setting
from bench.rpc.turns import in_turn

T = TypeVar("T")

_MILLION = 1_000_000


@dataclass(frozen=True)
class Sample:
    """One pass over the pages."""

    pages_per_second: float
    cpu_seconds_per_million: float


@dataclass(frozen=True)
class Pair:
    """A client, and the server it is connected to."""

    client: Client
    server: Server


def measured(setting: Setting, pairs: list[Pair], work: Callable[[Any, T], int], given: T) -> dict[str, list[Sample]]:
    """What each pair, by the client's name, took for the work in its turns; a first turn warms up."""
    runs = {pair.client.name: partial(_sample, pair.server, partial(work, pair.client, given)) for pair in pairs}
    in_turn(runs, 1)
    return in_turn(runs, setting.pairs)


def _sample(server: Server, work: Callable[[], int]) -> Sample:
    cpu, begun = server.cpu_seconds(), time.perf_counter()
    pages = work()
    seconds = time.perf_counter() - begun
    return Sample(pages / seconds, (server.cpu_seconds() - cpu) / pages * _MILLION)


def batches_of(setting: Setting, pages: int) -> list[dict[int, bytes]]:
    """The first pages, in batches."""
    return [setting.pages.batch(first, BATCH) for first in range(0, setting.scaled(pages), BATCH)]


def check(client: Client, batches: list[dict[int, bytes]]) -> None:
    """Who does not give back what it was given is not measured."""
    for batch in batches:
        if not client.put(batch) or client.get(list(batch)) != batch:
            raise RuntimeError(f"{client.name} does not give back the pages it was given")


def put_batches(client: Client, batches: list[dict[int, bytes]]) -> int:
    """Put all; the number of pages."""
    for batch in batches:
        client.put(batch)
    return sum(map(len, batches))


def get_batches(client: Client, batches: list[dict[int, bytes]]) -> int:
    """Get all; the number of pages."""
    return sum(len(client.get(list(batch))) for batch in batches)
