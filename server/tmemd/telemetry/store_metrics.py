"""The arena's statistics as Prometheus metric families: names, help texts and labels.

The arena bounds the number of series: at most 1024 pools with about 50 each; zsmalloc classes are summed over the pools
of a kind. `client` is the pool's owner and `kind` its kind, so neither adds series. A pool's counters end with it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from tmemd.base.errors import UnknownPoolError
from tmemd.store.api import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tmemd.store.api import PoolSettings, Store

# Name, help and statistic for each pool. A name without `_total` is a gauge.
POOL = (
    ("tmem_pages", "Pages held.", "pages"),
    ("tmem_uncompressed_bytes", "Bytes of the pages held, before compression.", "uncompressed_bytes"),
    ("tmem_payload_bytes", "Bytes of the pages held, as stored.", "payload_bytes"),
    ("tmem_footprint_bytes", "Bytes of the frames in use.", "footprint_bytes"),
    ("tmem_footprint_frames", "Frames of 4096 bytes in use.", "footprint_frames"),
    ("tmem_same_filled_pages", "Pages held as an 8-byte pattern.", "same_filled_pages"),
    ("tmem_raw_pages", "Pages held uncompressed.", "raw_pages"),
    ("tmem_quota_bytes", "Most bytes of frames that the pool may use; 0 is no quota.", "quota"),
    ("tmem_promised_bytes", "Bytes of the pool's reserve that are not used yet.", "promised_bytes"),
    ("tmem_weight", "Share of the memory relative to other ephemeral pools.", "weight"),
    ("tmem_frozen", "1 while the pool is frozen.", "frozen"),
    ("tmem_put_stored_pages_total", "Pages put and stored.", "puts_stored"),
    ("tmem_put_replaced_pages_total", "Pages stored that replaced an older page.", "puts_replaced"),
    ("tmem_put_old_flushed_pages_total", "Older pages flushed by a put that was refused.", "puts_old_flushed"),
    ("tmem_flush_requested_pages_total", "Pages that flushes asked for.", "flushes"),
    ("tmem_flushed_pages_total", "Pages that flushes found.", "flushed_pages"),
    ("tmem_flushed_objects_total", "Objects that flushes found.", "flushed_objects"),
    ("tmem_evicted_frames_total", "Frames freed by eviction.", "evicted_frames"),
    ("tmem_compactions_total", "Compactions.", "compactions"),
    ("tmem_moved_pages_total", "Pages moved by compaction.", "moved_pages"),
    ("tmem_compacted_frames_total", "Frames freed by compaction.", "compacted_frames"),
)
# Name, help, label and its values, and prefix of the statistics. The values add up to the total.
SPLIT = (
    ("tmem_put_refused_pages_total", "Pages put and refused, by reason.", "reason", REFUSALS, "refused_"),
    ("tmem_get_pages_total", "Pages of gets, by outcome.", "outcome", ("hit", "miss", "corrupt"), "gets_"),
    ("tmem_evicted_pages_total", "Pages evicted, by cause.", "cause", ("memory", "quota", "relinquish"), "evicted_"),
)
CLASSES = (
    ("tmem_class_objects", "Objects stored in a zsmalloc size class.", "objects"),
    ("tmem_class_capacity_objects", "Objects that the zspages of a size class can hold.", "capacity"),
    ("tmem_class_freeable_frames", "Most frames of a size class that compaction could free.", "freeable_frames"),
)
STORE = (
    ("tmem_memory_bytes", "The most bytes the arena may use.", "memory_bytes"),
    ("tmem_used_bytes", "Bytes that the arena uses, everything counted.", "used_bytes"),
    ("tmem_metadata_bytes", "Bytes of index, tables and slot headers.", "metadata_bytes"),
    ("tmem_table_bytes", "Bytes of index and tables.", "table_bytes"),
    ("tmem_slot_header_bytes", "Bytes of slot headers, which are part of the pools' frames.", "slot_header_bytes"),
    ("tmem_reserve_bytes", "Bytes of freed frames kept for the next put.", "reserve_bytes"),
    ("tmem_objects", "Objects with pages.", "objects"),
    ("tmem_pools", "Pools.", "pools"),
    ("tmem_shards", "Separately locked parts of the arena.", "shards"),
    ("tmem_full", "1 while new persistent pages are refused because memory is full.", "full"),
    ("tmem_generation", "Times that the arena was attached while nobody else had it.", "generation"),
    ("tmem_limit_hits_total", "Pages refused because the arena or its file system was full.", "limit_hits"),
    ("tmem_recoveries_total", "Shards rebuilt from their slots.", "recoveries"),
    ("tmem_recovery_replayed_slots_total", "Slots read by recoveries.", "slots_replayed"),
    ("tmem_recovery_dropped_slots_total", "Slots dropped by recoveries.", "slots_dropped"),
    ("tmem_lock_waits_total", "Lock acquisitions that had to wait.", "lock_waits"),
    ("tmem_lock_recoveries_total", "Locks recovered from a process that died.", "lock_recoveries"),
)
SIZE_BUCKETS = 16
"""Buckets of the histogram of stored sizes; the engine has 64, of which four share a bucket."""
_LABELS = ("pool", "kind", "client")


@dataclass(frozen=True, slots=True)
class _Pool:
    labels: tuple[str, str, str]
    settings: PoolSettings
    stats: dict[str, Any]


def store_families(store: Store) -> Iterator[Metric]:
    """The current metric families of the store."""
    pools, stats = list(_pools(store)), store.stats()
    yield from (family(name, about, (), [((), stats[key])]) for name, about, key in STORE)
    threshold = store.info()["accept_threshold"] / 100
    about = "Fraction of memory below which a full store accepts pages again."
    yield family("tmem_accept_threshold_ratio", about, (), [((), threshold)])
    for name, about, key in POOL:
        yield family(name, about, _LABELS, [(pool.labels, pool.stats[key]) for pool in pools])
    for name, about, label, values, prefix in SPLIT:
        samples = [((*pool.labels, value), pool.stats[prefix + value]) for pool in pools for value in values]
        yield family(name, about, (*_LABELS, label), samples)
    yield _settings(pools)
    yield _sizes(pools)
    yield from _classes(pools)


def family(
    name: str, about: str, labels: Iterable[str], samples: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily | GaugeMetricFamily:
    """A counter if the name ends in `_total`, else a gauge."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    made = kind(name.removesuffix("_total"), about, labels=list(labels))
    for values, value in samples:
        made.add_metric(list(values), value)
    return made


def _pools(store: Store) -> Iterator[_Pool]:
    for pool in store.pools():
        try:
            settings, stats, frozen = pool.settings(), pool.stats(), pool.frozen()
        except UnknownPoolError:
            continue  # destroyed since
        stats |= {
            "uncompressed_bytes": stats["pages"] * settings.page_size,
            "quota": settings.quota,
            "weight": settings.weight,
            "frozen": frozen,
        }
        yield _Pool((pool.name, settings.kind, settings.owner), settings, stats)


def _settings(pools: list[_Pool]) -> Metric:
    made = InfoMetricFamily("tmem_pool", "The settings of the pool.", labels=[*_LABELS])
    for pool in pools:
        settings = pool.settings
        fixed = {"codec": settings.codec, "allocator": settings.allocator, "page_size": str(settings.page_size)}
        made.add_metric(pool.labels, {**fixed, "gets": "keep" if settings.keeps else "take"})
    return made


def _sizes(pools: list[_Pool]) -> Metric:
    """Pages of different sizes share the buckets: bounds are fractions of a page."""
    about = "Stored size of pages as a fraction of the page size, counted when stored."
    made = HistogramMetricFamily("tmem_stored_size_ratio", about, labels=_LABELS)
    for pool in pools:
        sums = list(itertools.accumulate(pool.stats["size_histogram"]))
        step = len(sums) // SIZE_BUCKETS
        bounds = [(str((at + 1) / SIZE_BUCKETS), float(sums[(at + 1) * step - 1])) for at in range(SIZE_BUCKETS)]
        made.add_metric(pool.labels, [*bounds, ("+Inf", float(sums[-1]))], None)
    return made


def _classes(pools: list[_Pool]) -> Iterator[Metric]:
    for name, about, key in CLASSES:
        sums: dict[tuple[str, str], int] = {}
        for pool in pools:
            for row in pool.stats["classes"]:
                labels = (pool.settings.kind, str(row["size"]))
                sums[labels] = sums.get(labels, 0) + row[key]
        yield family(name, about, ("kind", "size"), sums.items())
