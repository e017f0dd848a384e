"""What the daemon itself counts; the store counts the rest. Used on the event loop, read by the metrics' thread.

A reader may see one call counted and the next not; each number by itself is right.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0)
"""Upper bounds of the latency buckets, in seconds; what is above all of them has a bucket too."""


@dataclass(slots=True)
class Latency:
    """How long calls of one method took."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


@dataclass(slots=True)
class Counts:
    """Since the daemon started."""

    late_messages: int = 0
    """Mutations of an older epoch, dropped."""
    sessions: int = 0
    """Open now."""
    bytes_in: Counter[str] = field(default_factory=Counter)
    """Bytes of pages received, by encoding."""
    bytes_out: Counter[str] = field(default_factory=Counter)
    """Bytes of pages sent, by encoding."""
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls answered, by method and status. Commands of a stream count as their method."""
    latencies: dict[str, Latency] = field(default_factory=dict)

    def answered(self, method: str, code: str, seconds: float) -> None:
        self.calls[method, code] += 1
        latency = self.latencies.get(method)
        if latency is None:
            latency = self.latencies.setdefault(method, Latency())
        latency.buckets[bisect_left(BOUNDS, seconds)] += 1
        latency.seconds += seconds
