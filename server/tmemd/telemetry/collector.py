"""Collects Prometheus metrics from the arena and the daemon, at each scrape."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tmemd import __version__
from tmemd.base.errors import ConfigError
from tmemd.base.parsers import is_loopback, join_address, split_address
from tmemd.security.certificate_expiry import expiry
from tmemd.security.certificates import certificates
from tmemd.telemetry.counters import BOUNDS
from tmemd.telemetry.metrics_http import Exposition
from tmemd.telemetry.store_metrics import family, store_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tmemd.config.settings import Config
    from tmemd.store.api import Store
    from tmemd.telemetry.counters import Counts


class StoreCollector(Collector):
    """Reads the statistics of the store and the counts of all workers."""

    def __init__(self, store: Store, counts: Callable[[], Counts], certificates: Sequence[str] = ()) -> None:
        """`certificates` are files, read at each scrape."""
        self._store = store
        self._counts = counts
        self._certificates = certificates

    def collect(self) -> Iterator[Metric]:
        about = "Versions of the daemon and its Python."
        yield InfoMetricFamily("tmem_build", about, {"version": __version__, "python": platform.python_version()})
        about = "When the first certificate in a TLS file expires."
        ends = [((path,), end) for path in self._certificates if (end := expiry(path)) is not None]
        yield family("tmem_tls_certificate_expiry_timestamp_seconds", about, ("file",), ends)
        yield from store_families(self._store)
        yield from self._daemon()

    def _daemon(self) -> Iterator[Metric]:
        counts = self._counts()
        yield family("tmem_workers", "Worker processes.", (), [((), counts.workers)])
        about = "Worker processes that died and were replaced."
        yield family("tmem_worker_replacements_total", about, (), [((), counts.worker_replacements)])
        yield family("tmem_sessions", "Open sessions.", (), [((), counts.sessions)])
        yield family(
            "tmem_late_messages_total",
            "Mutations dropped because their epoch is stale.",
            (),
            [((), counts.late_messages)],
        )
        for name, about, by_encoding in (
            ("tmem_received_page_bytes_total", "Bytes of pages received, as encoded.", counts.bytes_in),
            ("tmem_sent_page_bytes_total", "Bytes of pages sent, as encoded.", counts.bytes_out),
        ):
            yield family(name, about, ("encoding",), [((key,), by_encoding[key]) for key in ("raw", "lz4")])
        # Errors are counted from 0 on: a counter that begins at 1 shows no increase.
        calls = {**{(method, "INTERNAL"): 0 for method in list(counts.latencies)}, **dict(counts.calls)}.items()
        yield family("tmem_calls_total", "Calls answered, by method and status.", ("method", "code"), calls)
        yield from _exports(counts)
        yield from _nbd(counts)
        latency = HistogramMetricFamily("tmem_call_seconds", "Seconds to answer a call.", labels=["method"])
        for method, seen in list(counts.latencies.items()):
            latency.add_metric([method], _cumulative(seen.buckets), seen.seconds)
        yield latency


# Name, help, label, and the counter of an export for each value of the label.
EXPORTS = (
    (
        "tmem_export_requests_total",
        "NBD requests answered, by kind.",
        "kind",
        {"read": "reads", "write": "writes", "trim": "trims", "other": "others"},
    ),
    (
        "tmem_export_bytes_total",
        "Bytes of NBD requests, by kind.",
        "kind",
        {"read": "read_bytes", "write": "written_bytes", "trim": "trimmed_bytes"},
    ),
    (
        "tmem_export_errors_total",
        "NBD requests answered with an error, by cause; all includes no_space and io.",
        "cause",
        {"all": "errors", "no_space": "no_space", "io": "io_errors"},
    ),
    (
        "tmem_export_connections_total",
        "NBD clients that opened the export, by outcome.",
        "outcome",
        {"attached": "attached", "refused": "refused"},
    ),
)


def _exports(counts: Counts) -> Iterator[Metric]:
    """Metrics per export, of which there are at most as many as pools."""
    names = sorted({name for name, _ in list(counts.exports)} | {*counts.export_sizes})
    about = "Size of an NBD export."
    yield family("tmem_export_size_bytes", about, ("export",), [((n,), counts.export_sizes[n]) for n in names])
    about = "NBD clients with the export open."
    yield family("tmem_export_clients", about, ("export",), [((n,), counts.export_clients[n]) for n in names])
    for family_name, about, label, keys in EXPORTS:
        samples = [((n, value), counts.exports[n, key]) for n in names for value, key in keys.items()]
        yield family(family_name, about, ("export", label), samples)


# Why NBD connections were refused, and the server's counter for it.
TURNED_AWAY = {
    "handshakes": "dropped",
    "timeout": "timed_out",
    "tls": "kept_out",
    "connections": "full",
    "client_connections": "client_full",
    "stalled": "stalled",
    "threads": "turned_away",
}


def _nbd(counts: Counts) -> Iterator[Metric]:
    """Metrics of the NBD server, if there is one."""
    if not counts.nbd_now:
        return
    for name, about, key in (
        ("tmem_nbd_connections", "NBD connections that have an export open.", "connected"),
        ("tmem_nbd_handshakes", "NBD connections that have not opened an export yet.", "handshakes"),
        ("tmem_nbd_buffer_bytes", "Bytes of large requests and replies held, of nbd_buffers.", "buffer_bytes"),
        ("tmem_nbd_buffer_waiters", "NBD connections that wait for such bytes.", "buffer_waiters"),
    ):
        yield family(name, about, (), [((), counts.nbd_now[key])])
    about = "NBD connections turned away or cut off, by why."
    samples = [((reason,), counts.nbd[key]) for reason, key in TURNED_AWAY.items()]
    yield family("tmem_nbd_turned_away_total", about, ("reason",), samples)


def expose(
    store: Store,
    counts: Callable[[], Counts],
    config: Config,
    name_of: Callable[[bytes], str],
    unready: Callable[[], str],
) -> tuple[str, Exposition]:
    """Serve metrics as configured; returns their URL, and the server to shut down.

    `name_of` extracts the name from a client's certificate; `unready` says why calls are not answered, or nothing.
    Uses plain text on loopback; on other addresses TLS, if the daemon has it.
    """
    address = config.metrics or ""
    host, port = split_address(address)
    secured = None if is_loopback(address) else certificates(config)
    registry = CollectorRegistry()
    files = [path for path in (config.tls_cert, config.tls_client_ca) if path]
    registry.register(StoreCollector(store, counts, files))
    ProcessCollector(registry=registry)
    if secured is not None:
        secured.load()
    try:
        context = secured.context if secured else None
        server = Exposition((host, int(port)), registry, context, readers(config), unready, name_of)
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {address} (the setting metrics): {error.strerror}") from error
    server.start()
    return f"{'https' if secured else 'http'}://{join_address(host, server.server_port)}/metrics", server


def readers(config: Config) -> frozenset[str] | None:
    """The clients that may read the metrics; None is everybody, if no certificates are asked for."""
    if config.tls_client_ca is None or is_loopback(config.metrics or ""):
        return None
    return config.administrators | {*config.metrics_clients}


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    sums, total = [], 0
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], list(buckets), strict=True):
        total += count
        sums.append((bound, float(total)))
    return sums
