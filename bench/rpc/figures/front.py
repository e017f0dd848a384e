"""The daemon without its store: what gRPC, Python and the messages cost, and so the most that a store could gain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.lib.figures import Figure
from bench.lib.servers import Tmemd
from bench.rpc.clients import Tmem
from bench.rpc.samples import Pair, Sample, batches_of, measured, put_batches
from bench.rpc.setting import Setting, against

_PAGES = 8192
_PEER = "the same with the store"


def measure(setting: Setting) -> Iterator[Figure]:
    """Puts to `--store null`, which takes all and keeps none, against puts to a daemon that stores."""
    with Tmemd(null=True) as null, Tmemd() as stores, contextlib.ExitStack() as stack:
        pairs = []
        for name, daemon in (("null", null), ("stores", stores)):
            client = Tmem(daemon.address)
            client.name = name
            stack.callback(client.close)
            pairs.append(Pair(client, daemon))
        taken = measured(setting, pairs, put_batches, batches_of(setting, _PAGES))
    yield against(setting, "front.put.batch64", "pages/s", _rates(taken["null"]), _PEER, _rates(taken["stores"]))
    yield against(
        setting, "front.cpu.put.batch64", "CPU s/million pages", _cpu(taken["null"]), _PEER, _cpu(taken["stores"])
    )


def _rates(samples: list[Sample]) -> list[float]:
    return [sample.pages_per_second for sample in samples]


def _cpu(samples: list[Sample]) -> list[float]:
    return [sample.cpu_seconds_per_million for sample in samples]
