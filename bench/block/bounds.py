"""What each figure of the block front and of the gateway has to reach."""

from bench.lib.figures import at_least, at_most

_LATENCY = at_most(1.0)

BOUNDS = {
    "random.read.depth1": _LATENCY,
    "random.read.depth32": at_least(1.0),
    "random.write.depth1": _LATENCY,
    "random.write.depth32": at_least(0.6),
    "real.read.depth1": at_most(round(1 / 3, 3)),
    "real.read.depth32": at_least(3.0),
    "real.write.depth1": at_most(0.2),
    "real.write.depth32": at_least(5.0),
    "connections.read.depth16": at_least(1.7),
    "connections.write.depth16": at_least(1.7),
    "sequential.read": at_least(1.0),
    "sequential.write": at_least(0.5),
    "held.blocks.lz4hc": at_least(0.85),
    "held.blocks.zstd:14": at_least(1.15),
    "boot.saved.reads": at_least(0.74),
    "boot.elapsed": at_most(0.6),
    "squeezed.elapsed": at_most(1.02),
    "zipf.saved.reads": at_least(0.7),
    "zipf.read.median": at_most(0.4),
    "cold.elapsed": at_most(1.05),
}
"""Bounds of ratios, of times at most and of rates at least; for `saved`, the part that the SAN was spared.

Figures without a bound are there to explain another.
"""
