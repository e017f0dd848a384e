"""The HTTP server of the metrics: a few requests at once, each in a thread, over TLS where it must.

Each has so many seconds as a whole, handshake and all: one whose peer takes longer, however little it sends at a time,
is cut off by the thread that takes the connections.

Where the process has used up all files that it may open, one request at a time is answered all the same: a file is kept
open for that, to be closed.

With client certificates only those may read whom the configuration names: the metrics tell of everybody's pools.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry

log = logging.getLogger("tmemd")

_SECONDS = 10.0
_AT_ONCE = 16
_PAUSE = 0.1
_READER = "tmemd.reader"


class Exposition(ThreadingMixIn, WSGIServer):
    """Serves a registry on an address, from `start` on."""

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        context: Callable[[], ssl.SSLContext] | None,
        readers: frozenset[str] | None,
    ) -> None:
        """`context` is asked at each connection; None is plain text. `readers` None is everybody."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._context = context
        self._readers = readers
        self._exposed = make_wsgi_app(registry)
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._ends: dict[socket.socket, float] = {}
        """When each request is cut off."""
        self._spare = -1
        self._keep_spare()
        super().__init__(address, _Handler)
        self.set_app(self._answer)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="tmemd-metrics", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the request's thread: whoever is slow holds up nobody else."""
        request.settimeout(_SECONDS)
        if self._context is None:
            with self._bounded(request):
                super().finish_request(request, client_address)
            return
        context = self._context()
        with (
            context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured,
            self._bounded(secured),
        ):
            secured.do_handshake()
            super().finish_request(secured, client_address)

    def service_actions(self) -> None:
        """Between connections, twice a second: cut off what has had its time."""
        self._keep_spare()
        now = time.monotonic()
        with self._lock:
            for request, end in self._ends.items():
                if end < now:
                    with suppress(OSError):  # its peer is gone
                        socket.socket.shutdown(request, socket.SHUT_RDWR)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno == errno.EINVAL:  # this is being shut down
                raise
            if self._give_spare():
                return super().get_request()
            time.sleep(_PAUSE)  # no more files can be open: they still cannot in the next moment
            raise

    def shutdown(self) -> None:
        """Stop at once: the thread that takes the connections is woken, not waited for until its next look."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        super().shutdown()

    def server_close(self) -> None:
        super().server_close()
        self._give_spare()

    def _keep_spare(self) -> None:
        if self._spare < 0:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_spare(self) -> bool:
        """Whether there is a file less than there was."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)
        return spare >= 0

    @contextmanager
    def _bounded(self, request: socket.socket) -> Iterator[None]:
        """Have the request cut off unless it ends in time."""
        with self._lock:
            self._ends[request] = time.monotonic() + _SECONDS
        try:
            yield
        finally:
            with self._lock:
                del self._ends[request]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("metrics: a request from %s failed", client_address, exc_info=True)

    def server_bind(self) -> None:
        """As the base class, without a look-up of the host's name."""
        super(WSGIServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self._readers is not None and environ[_READER] not in self._readers:
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"client {environ[_READER]!r} may not read the metrics\n".encode()]
        exposed: Iterable[bytes] = self._exposed(environ, start_response)
        return exposed


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> dict[str, Any]:
        certificate = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        return {**super().get_environ(), _READER: _name(certificate or {})}

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not every scrape is news."""


def _name(certificate: Mapping[str, Any]) -> str:
    """As gRPC's clients are named: the common name, else the first DNS name or URI."""
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = certificate.get("subjectAltName", ())
    names = [*common, *(value for wanted in ("DNS", "URI") for key, value in others if key == wanted)]
    return names[0] if names else ""
