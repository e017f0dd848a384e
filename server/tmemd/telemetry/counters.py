"""The daemon's own counts; the store has the rest. Updated on the event loop, read by the metrics' threads.

A reader may see one count updated and a related one not yet; each number by itself is right. Counts of several
processes add up, and travel as JSON: a field is a number, a `Counter` keyed by text or tuples of text, or latencies.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tmemd.store.api import ExportStatus

BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0)
"""Upper bounds of the latency buckets, in seconds; what is above all of them has a bucket too."""

NBD_GAUGES = frozenset(("connected", "handshakes", "buffer_bytes", "buffer_waiters"))
"""Gauges of the NBD server."""

_GAUGE = {"gauge": True}


@dataclass(slots=True)
class Latency:
    """Latencies of calls of one method."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, other: Latency) -> None:
        self.buckets = [ours + theirs for ours, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.seconds += other.seconds


@dataclass(slots=True)
class Counts:
    """Counts since the process started. Fields marked as gauges end with their process."""

    workers: int = field(default=0, metadata=_GAUGE)
    """Processes that serve."""
    worker_replacements: int = 0
    """Processes that died and were replaced."""
    late_messages: int = 0
    """Mutations of an older epoch, dropped."""
    sessions: int = field(default=0, metadata=_GAUGE)
    """Open now."""
    bytes_in: Counter[str] = field(default_factory=Counter)
    """Bytes of pages received, by encoding."""
    bytes_out: Counter[str] = field(default_factory=Counter)
    """Bytes of pages sent, by encoding."""
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls answered, by method and status. Commands of a stream count as their method."""
    latencies: dict[str, Latency] = field(default_factory=dict)
    exports: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Counters of exports, by export and name."""
    export_clients: Counter[str] = field(default_factory=Counter, metadata=_GAUGE)
    """Connections that have an export open."""
    export_sizes: Counter[str] = field(default_factory=Counter, metadata=_GAUGE)
    """Bytes of each device."""
    export_draining: Counter[str] = field(default_factory=Counter, metadata=_GAUGE)
    """1 where no new client is let in."""
    nbd: Counter[str] = field(default_factory=Counter)
    """NBD connections turned away, by why."""
    nbd_now: Counter[str] = field(default_factory=Counter, metadata=_GAUGE)
    """NBD connections, and what they hold."""

    def answered(self, method: str, code: str, seconds: float) -> None:
        self.calls[method, code] += 1
        latency = self.latencies.get(method)
        if latency is None:
            latency = self.latencies.setdefault(method, Latency())
        latency.buckets[bisect_left(BOUNDS, seconds)] += 1
        latency.seconds += seconds

    def take_exports(self, served: Mapping[str, ExportStatus], connections: Mapping[str, int]) -> None:
        """Take over the current state of exports and the NBD server."""
        self.nbd = Counter({key: n for key, n in connections.items() if key not in NBD_GAUGES})
        self.nbd_now = Counter({key: n for key, n in connections.items() if key in NBD_GAUGES})
        self.exports = Counter({(name, key): n for name, its in served.items() for key, n in its.counters.items()})
        self.export_clients = Counter({name: len(its.clients) for name, its in served.items()})
        self.export_sizes = Counter({name: its.size for name, its in served.items()})
        self.export_draining = Counter({name: int(its.draining) for name, its in served.items()})

    def add(self, other: Counts, *, gauges: bool = True) -> None:
        """Add the counts of another process; without gauges if it has ended."""
        for each in fields(self):
            if each.metadata and not gauges:
                continue
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(ours, Counter):
                ours.update(theirs)
            elif isinstance(ours, dict):
                for method, latency in theirs.items():
                    ours.setdefault(method, Latency()).add(latency)
            else:
                setattr(self, each.name, ours + theirs)

    def dump(self) -> dict[str, Any]:
        """As JSON values."""
        return {each.name: _dumped(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Counts:
        """The inverse of `dump`."""
        counts = cls()
        for each in fields(cls):
            empty, value = getattr(counts, each.name), dumped[each.name]
            if isinstance(empty, Counter):
                value = Counter({_key(key): count for key, count in value})
            elif isinstance(empty, dict):
                value = {method: Latency(buckets, seconds) for method, (buckets, seconds) in value}
            setattr(counts, each.name, value)
        return counts


def _dumped(value: Any) -> Any:
    if isinstance(value, Counter):
        return list(value.items())
    if isinstance(value, dict):
        return [(method, (latency.buckets, latency.seconds)) for method, latency in value.items()]
    return value


def _key(dumped: Any) -> Any:
    return tuple(dumped) if isinstance(dumped, list) else dumped
