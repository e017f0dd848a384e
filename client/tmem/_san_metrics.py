"""The gateway's numbers as Prometheus reads them, and the small HTTP server that gives them.

The server answers one request after another, each within seconds, and reads of a request no more than its head.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Latency = tuple[str, tuple[list[tuple[int, int]], int, int]]

_GAUGES = {
    "cache_up": "Whether the cache is used.",
    "san_up": "Whether the SAN answers.",
    "cache_latency_us": "Mean latency of short reads from the cache, lately, in microseconds.",
    "san_latency_us": "Mean latency of short reads from the SAN, lately, in microseconds.",
}
_SECONDS = 5.0


def exposition(stats: Mapping[str, int], latencies: Sequence[Latency]) -> str:
    """The numbers in Prometheus' text format."""
    lines: list[str] = []
    for name, value in stats.items():
        if name in _GAUGES:
            lines += [f"# HELP tmem_san_{name} {_GAUGES[name]}", f"# TYPE tmem_san_{name} gauge"]
            lines.append(f"tmem_san_{name} {value}")
        else:
            lines += [f"# TYPE tmem_san_{name}_total counter", f"tmem_san_{name}_total {value}"]
    lines.append("# HELP tmem_san_read_seconds How long reads took, by who answered.")
    lines.append("# TYPE tmem_san_read_seconds histogram")
    for source, (buckets, count, micros) in latencies:
        for bound, below in buckets:
            lines.append(f'tmem_san_read_seconds_bucket{{source="{source}",le="{bound / 1e6:g}"}} {below}')
        lines.append(f'tmem_san_read_seconds_bucket{{source="{source}",le="+Inf"}} {count}')
        lines.append(f'tmem_san_read_seconds_sum{{source="{source}"}} {micros / 1e6:g}')
        lines.append(f'tmem_san_read_seconds_count{{source="{source}"}} {count}')
    return "\n".join(lines) + "\n"


class MetricsServer:
    """Serves `/metrics` at `host:port` until closed. `render` is called for each request."""

    def __init__(self, address: str, render: Callable[[], str]) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdigit() or not host:
            raise ValueError(f"{address!r} is not HOST:PORT")
        self._server = _Server((host.strip("[]"), int(port)), _handler(render))
        self._thread = threading.Thread(target=self._server.serve_forever, name="san-metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(HTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer would look its own name up.
        import socketserver

        socketserver.TCPServer.server_bind(self)


def _handler(render: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = render().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base's name
            pass

    return Handler
