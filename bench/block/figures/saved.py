"""What gateways take off a SAN, and what they cost where they cannot help; the peer is the same hosts without."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import tmem
from bench.block.disks import NbdkitProxy
from bench.block.san import hosts, traces
from bench.block.san.hosts import Outcome, Plan
from bench.block.san.volume import DELAY
from bench.block.setting import Setting, against
from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.rpc.setting import say
from bench.rpc.turns import in_turn, ratio

_MIB = 1 << 20
_HOSTS = 4
_SEED = 11
_PAGES = 1024
_APART = 1.0
"""Of the time that the SAN alone takes for all reads of a boot: when the next host begins."""


def boot(setting: Setting) -> Iterator[Figure]:
    """Four hosts boot one image through a shared pool."""
    found = _Found(_boot(setting), setting, "boot")
    yield from found.saved()
    yield found.figure("elapsed", "s", lambda outcome: outcome.seconds)
    yield found.figure("first", "s", lambda outcome: outcome.played[0].seconds)


def squeezed(setting: Setting) -> Iterator[Figure]:
    """The same with room for half of what a boot reads."""
    found = _Found(_boot(setting, quota=_footprint(setting) // 2), setting, "squeezed")
    yield from found.saved()
    yield found.figure("elapsed", "s", lambda outcome: outcome.seconds)


def skewed(setting: Setting) -> Iterator[Figure]:
    """A host reads and writes, Zipf 0.9, and has a cache of its own for a quarter of what it uses."""
    count = 10_000 if setting.quick else 40_000
    plan = Plan(setting.image.path, "skewed", (_PAGES, _PAGES // 4, count, _SEED))
    found = _Found(plan, setting, "zipf", pairs=2)
    yield from found.saved()
    yield found.figure("read.median", "us", lambda outcome: outcome.median_read * 1e6)
    yield found.figure("elapsed", "s", lambda outcome: outcome.seconds)


def cold(setting: Setting) -> Iterator[Figure]:
    """Pages at random places, each read once: nothing to be gained. And the same through a mere proxy."""
    touched = (500 if setting.quick else 3_000) * PAGE
    plan = Plan(setting.image.path, "everything_once", (setting.image.size, touched, _SEED))
    found = _Found(plan, setting, "cold")
    yield found.figure("elapsed", "s", lambda outcome: outcome.seconds)
    yield found.figure("bytes", "MB", lambda outcome: outcome.served.read_bytes / 1e6)
    if (reason := NbdkitProxy.missing()) is not None:
        return say(f"cold.limit: skipped, {reason}")
    kinds = {"tmem san": True, NbdkitProxy.name: False}
    runs = {name: partial(hosts.run, plan, cached=cached, proxied=not cached) for name, cached in kinds.items()}
    taken = in_turn(runs, setting.pairs)
    seconds = {name: [outcome.seconds for outcome in outcomes] for name, outcomes in taken.items()}
    yield from against("cold.limit", "s", seconds, "tmem san", NbdkitProxy.name, setting.image.what)


@dataclass
class _Found:
    """What a plan came to, with and without gateways in turns."""

    plan: Plan
    setting: Setting
    name: str
    pairs: int = 5

    def __post_init__(self) -> None:
        runs = {cached: partial(hosts.run, self.plan, cached=cached) for cached in (True, False)}
        outcomes = in_turn(runs, min(self.pairs, self.setting.pairs))
        self.with_gateways, self.without = outcomes[True], outcomes[False]

    def figure(self, what: str, unit: str, pick: Callable[[Outcome], float]) -> Figure:
        """With gateways against without."""
        ours, theirs = [[pick(each) for each in outcomes] for outcomes in (self.with_gateways, self.without)]
        medians = statistics.median(ours), statistics.median(theirs)
        return Figure(f"{self.name}.{what}", medians[0], unit, "no cache", medians[1], ratio(ours, theirs), self._what)

    def saved(self) -> Iterator[Figure]:
        """The part of requests and of bytes that the SAN was spared; the values are what it had to do."""
        for what, unit, pick in (
            ("reads", "SAN reads", lambda outcome: outcome.served.reads),
            ("bytes", "SAN bytes", lambda outcome: outcome.served.read_bytes),
        ):
            left = self.figure(f"saved.{what}", unit, pick)
            yield Figure(**(left.line() | {"ratio": 1 - left.ratio}))

    @property
    def _what(self) -> str:
        return self.setting.image.what


def _boot(setting: Setting, quota: int = 0) -> Plan:
    arguments = _arguments(setting)
    requests = len(traces.boot(*arguments))
    return Plan(
        *(setting.image.path, "boot", arguments),
        hosts=_HOSTS,
        apart=requests * DELAY * _APART,
        quota=quota,
        flags=hosts.SHARED,
    )


def _arguments(setting: Setting) -> tuple[int, int, int]:
    return setting.image.size, (8 if setting.quick else 32) * _MIB, _SEED


def _footprint(setting: Setting) -> int:
    """What the pages that a boot reads take in a pool."""
    with tmem.open(memory="256MiB") as store, setting.image.path.open("rb") as image:
        pool = store.pool("boot", kind="ephemeral")
        for _, offset, length in traces.boot(*_arguments(setting)):
            image.seek(offset)
            pool.put_range(1, offset // PAGE, image.read(length))
        return int(pool.stats()["footprint_bytes"])
