"""What `tmem top` shows, from two looks at a store: rates, and how things stand. No terminal here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmem._model.outcome import REFUSALS
from tmem.cli.base import text
from tmem.cli.base.output import Column, lay_out
from tmem.cli.base.target import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tmem.cli.base.target import PoolView

_CAUSES = ("memory", "quota", "relinquish")
_PUTS = ("puts_stored", "puts_replaced")
_REFUSED = tuple(f"refused_{reason}" for reason in REFUSALS)
_RATES = {
    "puts": _PUTS,
    "refused": _REFUSED,
    "hits": ("gets_hit",),
    "misses": ("gets_miss",),
    "flushed": ("flushed_pages",),
    **{f"evicted_{cause}": (f"evicted_{cause}",) for cause in _CAUSES},
}
"""Rates, and the counters whose growth each is."""

_COLUMNS = (
    Column("POOL"),
    Column("PAGES", right=True, rank=5),
    Column("FOOTPRINT", right=True),
    Column("RATIO", right=True),
    Column("PUT/s", right=True),
    Column("GET/s", right=True),
    Column("HIT", right=True),
    Column("REFUSE/s", right=True, rank=6),
    Column("FLUSH/s", right=True, rank=7),
    Column("EV.MEM/s", right=True, rank=1),
    Column("EV.QUOTA/s", right=True, rank=2),
    Column("EV.RELINQ/s", right=True, rank=8),
    Column("", rank=9),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a store. `clock` is monotonic, `time` that of day, `latency` how long the server took to answer."""

    clock: float
    time: float
    latency: float
    status: Status
    pools: Sequence[PoolView]


def of_pools(pools: Sequence[PoolView]) -> Status:
    """The status as far as these pools show it, for a client that may not see more: no limit is known."""
    store: Counter[str] = Counter(memory_bytes=0, full=0)
    for pool in pools:
        store.update({name: value for name, value in pool.stats.items() if isinstance(value, int)})
    store["used_bytes"] = store["footprint_bytes"]
    return Status(dict(store) | {"pages": store["pages"]}, None, 0, "")


def rates(now: Mapping[str, int], before: Mapping[str, int] | None, seconds: float) -> dict[str, float]:
    """Things a second; none where there is nothing to compare with."""
    if before is None or seconds <= 0:
        return dict.fromkeys(_RATES, 0.0)
    return {
        rate: max(0, sum(now.get(name, 0) - before.get(name, 0) for name in names)) / seconds
        for rate, names in _RATES.items()
    }


def as_dict(now: Sample, before: Sample | None) -> dict[str, Any]:
    """A sample as one line of JSON."""
    known = {} if before is None else {pool.name: pool.stats for pool in before.pools}
    seconds = now.clock - before.clock if before else 0.0
    store = now.status.store
    return {
        "time": now.time,
        "seconds": seconds,
        "latency_seconds": now.latency,
        "used_bytes": store["used_bytes"],
        "memory_bytes": store["memory_bytes"],
        "rates": rates(store, before.status.store if before else None, seconds),
        "pools": [
            {
                "name": pool.name,
                "pages": pool.stats["pages"],
                "uncompressed_bytes": pool.whole,
                "payload_bytes": pool.stats["payload_bytes"],
                "footprint_bytes": pool.stats["footprint_bytes"],
                "frozen": pool.frozen,
                "rates": rates(pool.stats, known.get(pool.name), seconds),
            }
            for pool in now.pools
        ],
    }


def lines(now: Sample, before: Sample | None, address: str, width: int | None) -> list[str]:
    """A sample as people read it: what concerns all, an empty line, and a table of the pools."""
    found = as_dict(now, before)
    rows = [_row(pool) for pool in sorted(found["pools"], key=_busiest)]
    return [*_summary(now, found, address), "", *lay_out(_COLUMNS, rows, width)]


def _summary(now: Sample, found: dict[str, Any], address: str) -> list[str]:
    store, total = now.status.store, found["rates"]
    whole = sum(pool.whole for pool in now.pools)
    full = "  FULL: new persistent pages are refused" if store["full"] else ""
    evicted = sum(total[f"evicted_{cause}"] for cause in _CAUSES)
    limit = store["memory_bytes"]
    share = text.percent(store["used_bytes"], limit)
    return [
        f"tmem {address}   answered in {text.duration(now.latency)}",
        f"memory  {text.size(store['used_bytes'])} "
        + (f"of {text.size(limit)}, {share}{full}" if limit else "of your pools"),
        f"pages   {text.count(store['pages'])}, {text.size(whole)} uncompressed, "
        f"ratio {text.ratio(whole, store['used_bytes'])}",
        f"rates   put {text.rate(total['puts'])}  hit {text.rate(total['hits'])}  miss {text.rate(total['misses'])}  "
        f"refused {text.rate(total['refused'])}  evicted {text.rate(evicted)}  pages/s",
    ]


def _busiest(pool: dict[str, Any]) -> tuple[float, str]:
    return -sum(pool["rates"].values()), pool["name"]


def _row(pool: dict[str, Any]) -> list[str]:
    rate = pool["rates"]
    gets = rate["hits"] + rate["misses"]
    return [
        text.printable(pool["name"]),
        text.count(pool["pages"]),
        text.size(pool["footprint_bytes"]),
        text.ratio(pool["uncompressed_bytes"], pool["footprint_bytes"]),
        text.rate(rate["puts"]),
        text.rate(gets),
        text.percent(rate["hits"], gets),
        text.rate(rate["refused"]),
        text.rate(rate["flushed"]),
        *(text.rate(rate[f"evicted_{cause}"]) for cause in _CAUSES),
        "frozen" if pool["frozen"] else "",
    ]
