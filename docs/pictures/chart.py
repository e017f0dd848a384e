"""Five figures against what people use today, from lines that the benchmarks print."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.pictures import svg

FIGURES = Path(__file__).parent / "figures"
_WIDTH, _ROW, _TOP = 880, 58, 92
_AXIS, _AXIS_END = 420, 800
_SCALE = (0.5, 1, 2, 4, 8)


@dataclass(frozen=True)
class Row:
    """A figure that the chart shows, and whose it is."""

    suite: str
    name: str
    title: str
    against: str
    less_is_better: bool = False


ROWS = [
    Row("block", "real.read.depth32", "Reads from a compressed disk, 32 in flight", "nbdkit memory, zstd"),
    Row("block", "boot.elapsed", "Four hosts boot from one SAN image", "no cache", less_is_better=True),
    Row("block", "random.read.depth1", "One swap read of 4 KiB: latency", "nbdkit memory, uncompressed", True),
    Row("rpc", "held.zstd", "Pages held per byte of server memory, zstd", "redis or memcached, lz4", True),
    Row("rpc", "put.batch64", "Puts from Python, 64 pages a call", "redis or memcached, lz4"),
]


def lines(suite: str) -> list[dict[str, Any]]:
    """What a benchmark printed: first the machine, then a figure a line."""
    return [json.loads(line) for line in (FIGURES / f"{suite}.jsonl").read_text().splitlines()]


def gains(row: Row) -> list[float]:
    """How many times better than its peer the row's figure was, in each run, the least first."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for line in lines(row.suite)[1:]:
        ratios[line["name"]].append(line["ratio"])
    return sorted(1 / ratio if row.less_is_better else ratio for ratio in ratios[row.name])


def draw() -> str:
    """The chart of README."""
    bottom = _TOP + _ROW * len(ROWS)
    parts = [
        svg.text(20, 34, "Times better than what people use today", "strong"),
        svg.text(20, 54, _machine(), "small"),
    ]
    for mark in _SCALE:
        parts += [svg.line(_x(mark), _TOP - 12, _x(mark), bottom - 8, "line" if mark == 1 else "rule")]
        parts += [svg.text(_x(mark), _TOP - 18, f"{mark:g}x", "small", "middle")]
    for number, row in enumerate(ROWS):
        parts += _row(row, _TOP + _ROW * number)
    return svg.document(_WIDTH, bottom + 12, "tmem against its peers, ratios of runs in turn", parts)


def _machine() -> str:
    machine = lines("block")[0]["machine"]
    gigabytes = machine["memory_mib"] // 1024
    where = f"{machine['cpu']}, {machine['cores']} virtual cores, {gigabytes} GB, Linux {machine['kernel']}"
    return f"Ratios of runs in turn on one machine: {where}. Below 1x the peer is better."


def _x(gain: float) -> float:
    low, high = math.log2(_SCALE[0]), math.log2(_SCALE[-1])
    return round(_AXIS + (_AXIS_END - _AXIS) * (math.log2(gain) - low) / (high - low), 1)


def _row(row: Row, top: int) -> list[str]:
    worst, best = gains(row)[0], gains(row)[-1]
    start, end = sorted((_x(1), _x(best if worst >= 1 else worst)))
    return [
        svg.text(20, top + 16, row.title),
        svg.text(20, top + 34, f"against {row.against}", "small"),
        svg.rect(start, top + 6, round(end - start, 1), 24, "bar" if worst >= 1 else "worse"),
        svg.text(max(end, _x(1)) + 8, top + 23, _in_words(worst, best), "strong"),
    ]


def _in_words(worst: float, best: float) -> str:
    low, high = (f"{gain:.2f}" if gain < 1 else f"{gain:.1f}" for gain in (worst, best))
    return f"{low}x" if low == high else f"{low} to {high}x"
