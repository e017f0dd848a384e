"""Prometheus exposition: the arena's own counters, and the daemon's. Read at each scrape; nothing is kept here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tmemd.config import split_address
from tmemd.counts import BOUNDS
from tmemd.errors import ConfigError, UnknownPoolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tmemd.counts import Counts
    from tmemd.surface import Store

# Name, help and statistic of what each pool has. A name without `_total` is a gauge.
POOL = (
    ("tmem_pages", "Pages held.", "pages"),
    ("tmem_payload_bytes", "Bytes of the pages held, as stored.", "payload_bytes"),
    ("tmem_footprint_bytes", "Bytes of the frames taken.", "footprint_bytes"),
    ("tmem_footprint_frames", "Frames taken.", "footprint_frames"),
    ("tmem_same_filled_pages", "Pages held as an 8-byte pattern.", "same_filled_pages"),
    ("tmem_raw_pages", "Pages held uncompressed.", "raw_pages"),
    ("tmem_puts_stored_total", "Pages stored.", "puts_stored"),
    ("tmem_puts_replaced_total", "Pages stored in place of an older page.", "puts_replaced"),
    ("tmem_puts_old_flushed_total", "Refused puts that flushed an older page.", "puts_old_flushed"),
    ("tmem_flushes_total", "Flushes of pages asked for.", "flushes"),
    ("tmem_flushed_pages_total", "Pages that flushes found.", "flushed_pages"),
    ("tmem_flushed_objects_total", "Objects that flushes found.", "flushed_objects"),
    ("tmem_evicted_frames_total", "Frames freed by eviction.", "evicted_frames"),
    ("tmem_compactions_total", "Compactions.", "compactions"),
    ("tmem_moved_pages_total", "Pages moved by compaction.", "moved_pages"),
    ("tmem_compacted_frames_total", "Frames freed by compaction.", "compacted_frames"),
)
# Name, help, label and prefix of what is split by a label.
SPLIT = (
    ("tmem_puts_refused_total", "Pages refused, by reason.", "reason", "refused_"),
    ("tmem_gets_total", "Pages asked for, by outcome.", "outcome", "gets_"),
    ("tmem_evicted_pages_total", "Pages evicted, by cause.", "cause", "evicted_"),
)
CLASSES = (
    ("tmem_class_objects", "Objects in use of a size class.", "objects"),
    ("tmem_class_capacity_objects", "Objects that the zspages of a size class can hold.", "capacity"),
    ("tmem_class_freeable_frames", "Frames of a size class that compaction could free at most.", "freeable_frames"),
)
STORE = (
    ("tmem_memory_bytes", "The most bytes the arena may use.", "memory_bytes"),
    ("tmem_used_bytes", "Bytes the arena uses, everything counted.", "used_bytes"),
    ("tmem_metadata_bytes", "Bytes of index and tables.", "metadata_bytes"),
    ("tmem_table_bytes", "Bytes of frame tables.", "table_bytes"),
    ("tmem_slot_header_bytes", "Bytes of slot headers.", "slot_header_bytes"),
    ("tmem_reserve_bytes", "Bytes of freed frames kept for the next put.", "reserve_bytes"),
    ("tmem_objects", "Objects with pages.", "objects"),
    ("tmem_pools", "Pools.", "pools"),
    ("tmem_shards", "Separately locked parts of the arena.", "shards"),
    ("tmem_full", "1 while persistent pages are refused for want of memory.", "full"),
    ("tmem_generation", "Times the arena was attached by nobody else.", "generation"),
    ("tmem_limit_hits_total", "Puts that found the arena at its limit.", "limit_hits"),
    ("tmem_corrupt_pages_total", "Pages whose bytes failed their checksum.", "corrupt_pages"),
    ("tmem_recoveries_total", "Shards rebuilt from their slots.", "recoveries"),
    ("tmem_slots_replayed_total", "Slots read by recoveries.", "slots_replayed"),
    ("tmem_slots_dropped_total", "Slots dropped by recoveries.", "slots_dropped"),
    ("tmem_lock_waits_total", "Locks that were waited for.", "lock_waits"),
    ("tmem_lock_recoveries_total", "Locks taken over from a process that died.", "lock_recoveries"),
)
_NOT_SPLIT = {"evicted_pages", "evicted_frames"}
_POOL_LABELS = ("pool", "kind")

Rows = list[tuple[tuple[str, str], dict[str, Any]]]


class StoreCollector(Collector):
    """Reads the store and the daemon's counts."""

    def __init__(self, store: Store, counts: Counts) -> None:
        self._store = store
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        rows, store = self._rows(), self._store.stats()
        yield from (_family(name, about, (), [((), store[key])]) for name, about, key in STORE)
        for name, about, key in POOL:
            yield _family(name, about, _POOL_LABELS, [(labels, stats[key]) for labels, stats in rows])
        for name, about, label, prefix in SPLIT:
            yield _family(name, about, (*_POOL_LABELS, label), _split(rows, prefix))
        yield from _classes(rows)
        yield from self._daemon()

    def _rows(self) -> Rows:
        rows = []
        for pool in self._store.pools():
            try:
                rows.append(((pool.name, pool.settings().kind), pool.stats()))
            except UnknownPoolError:
                continue  # destroyed since
        return rows

    def _daemon(self) -> Iterator[Metric]:
        counts = self._counts
        yield _family("tmem_sessions", "Sessions open.", (), [((), counts.sessions)])
        yield _family("tmem_late_messages_total", "Mutations of an old epoch.", (), [((), counts.late_messages)])
        for name, about, by_encoding in (
            ("tmem_received_page_bytes_total", "Bytes of pages received.", counts.bytes_in),
            ("tmem_sent_page_bytes_total", "Bytes of pages sent.", counts.bytes_out),
        ):
            yield _family(name, about, ("encoding",), [((key,), n) for key, n in list(by_encoding.items())])
        calls = list(counts.calls.items())
        yield _family("tmem_calls_total", "Calls answered.", ("method", "code"), calls)
        latency = HistogramMetricFamily("tmem_call_seconds", "Time to answer a call.", labels=["method"])
        for method, seen in list(counts.latencies.items()):
            latency.add_metric([method], _cumulative(seen.buckets), seen.seconds)
        yield latency


def expose(store: Store, counts: Counts, address: str) -> tuple[str, Any]:
    """Serve the exposition in a thread of its own; its URL and the server, to be shut down."""
    host, port = split_address(address)
    registry = CollectorRegistry()
    registry.register(StoreCollector(store, counts))
    try:
        server, _ = start_http_server(int(port), host, registry)
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {address}: {error.strerror}") from error
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{server.server_port}/metrics", server


def _family(
    name: str, about: str, labels: Iterable[str], samples: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(name.removesuffix("_total"), about, labels=list(labels))
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def _split(rows: Rows, prefix: str) -> list[tuple[tuple[str, ...], int]]:
    return [
        ((*labels, key.removeprefix(prefix)), value)
        for labels, stats in rows
        for key, value in stats.items()
        if key.startswith(prefix) and key not in _NOT_SPLIT
    ]


def _classes(rows: Rows) -> Iterator[Metric]:
    for name, about, key in CLASSES:
        samples = [((*labels, str(row["size"])), row[key]) for labels, stats in rows for row in stats["classes"]]
        yield _family(name, about, (*_POOL_LABELS, "size"), samples)
    stored = [
        ((*labels, str(bucket + 1)), count)
        for labels, stats in rows
        for bucket, count in enumerate(stats["size_histogram"])
    ]
    about = "Pages ever stored, by the 64ths of a page that they took."
    yield _family("tmem_stored_pages_total", about, (*_POOL_LABELS, "sixty_fourths"), stored)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    sums, total = [], 0
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], list(buckets), strict=True):
        total += count
        sums.append((bound, float(total)))
    return sums
