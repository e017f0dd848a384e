"""How long one page takes: by a unary call, on a stream, and from the arena itself."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import tmem
from bench.lib.figures import Figure
from bench.lib.servers import Memcached, Tmemd
from bench.rpc.clients import MemcachedLz4
from bench.rpc.empty import Empty
from bench.rpc.setting import Setting, against, say
from bench.rpc.stubs import Stream, Stubs
from bench.rpc.turns import in_turn

_CALLS = 2000
_LOCAL_CALLS = 5000
_INDEX = 7


def measure(setting: Setting) -> Iterator[Figure]:
    """Calls against a handler that does nothing, then shared memory against memcached."""
    with Tmemd() as daemon:
        yield from _calls(setting, daemon)
        yield from _shared_memory(setting, daemon)


def _calls(setting: Setting, daemon: Tmemd) -> Iterator[Figure]:
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Stubs(daemon.address))
        ours.open("latency")
        ours.put(_INDEX, setting.pages.page(_INDEX))
        reply = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "reply"
        reply.write_bytes(ours.get(_INDEX).SerializeToString())
        empty = stack.enter_context(Empty(reply))
        theirs = stack.enter_context(Stubs(empty.address))
        theirs.get(_INDEX)
        streams = [stack.enter_context(Stream(stubs)) for stubs in (ours, theirs)]
        ways = {"latency.get.unary": (ours.get, theirs.get), "latency.get.exchange": tuple(s.get for s in streams)}
        for name, (one, other) in ways.items():
            yield _compared(setting, name, _CALLS, partial(one, _INDEX), empty.name, partial(other, _INDEX))


def _shared_memory(setting: Setting, daemon: Tmemd) -> Iterator[Figure]:
    reason = Memcached.missing()
    if reason is not None:
        say(f"memcached: skipped, {reason}")
        return
    page = setting.pages.page(_INDEX)
    with Memcached() as server, tmem.connect(f"shm://{daemon.arena}") as store:
        pool = store.pool("latency.shm", kind="persistent")
        pool.put(1, {_INDEX: page})
        peer = MemcachedLz4(server.port)
        peer.put({_INDEX: page})
        if not pool.get(1, [_INDEX]) == peer.get([_INDEX]) == {_INDEX: page}:
            raise RuntimeError("a page did not come back as it was")
        with contextlib.closing(peer):
            ours, theirs = partial(pool.get, 1, [_INDEX]), partial(peer.get_block, _INDEX)
            yield _compared(setting, "latency.get.shm", _LOCAL_CALLS, ours, "pymemcache get", theirs)


def _compared(
    setting: Setting, name: str, calls: int, ours: Callable[[], object], peer: str, theirs: Callable[[], object]
) -> Figure:
    calls = setting.scaled(calls)
    runs = {"ours": partial(_median_us, ours, calls), "theirs": partial(_median_us, theirs, calls)}
    in_turn(runs, 1)
    taken = in_turn(runs, setting.pairs)
    return against(setting, name, "us, median", taken["ours"], peer, taken["theirs"])


def _median_us(call: Callable[[], object], calls: int) -> float:
    clock, times = time.perf_counter_ns, []
    for _ in range(calls):
        begun = clock()
        call()
        times.append(clock() - begun)
    return statistics.median(times) / 1000
