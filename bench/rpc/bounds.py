"""What each figure of the daemon has to reach."""

from bench.lib.figures import at_least, at_most

_SPEED = at_least(1.0)
_CPU = at_most(3.0)

BOUNDS = {
    "put.batch64": _SPEED,
    "get.batch64": _SPEED,
    "put.large1024": _SPEED,
    "get.large1024": _SPEED,
    "put.aio": _SPEED,
    "get.aio": _SPEED,
    "cpu.put.batch64": _CPU,
    "cpu.get.batch64": _CPU,
    "held.lz4": at_most(0.95),
    "held.zstd": at_most(0.75),
    "latency.get.unary": at_most(1.15),
    "latency.get.exchange": at_most(1.15),
    "latency.get.shm": at_most(0.2),
    "crowd.get16": at_most(1.5),
    "soak.memory": at_most(1.05),
    "restart.clean": at_most(1.0),
    "restart.killed": at_most(3.0),
}
"""Bounds of ratios, and for a restart of seconds; figures without a bound are there to explain another."""
