"""The HTTP server for metrics and health: a few requests at once, each in a thread, over TLS if needed.

A request has a deadline that includes its handshake: the accepting thread cuts off a peer that takes longer. At the
limit of requests the oldest one that waits for its peer makes room for the next: slow peers lock nobody out.

`/livez` shows that the process answers, `/readyz` whether calls are answered: both cheap, and open to everybody.

If the process has used up its open files, one request at a time is still answered: a spare file is kept open for that.

With client certificates only configured clients may read the metrics, as they show everybody's pools.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from tmemd.base.logs import RateLimitedErrors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

log = logging.getLogger("tmemd")

_SECONDS = 10.0
_AT_ONCE = 16
_MOST_THREADS = 2 * _AT_ONCE
"""Including requests that were cut off but have not ended yet."""
_PAUSE = 0.1
_READER, _SHOWN = "tmemd.reader", "tmemd.certificate"


class _Request:
    """A request in flight."""

    __slots__ = ("cut", "end", "socket", "working")

    def __init__(self, its: socket.socket) -> None:
        self.socket = its
        self.end = time.monotonic() + _SECONDS
        self.working = False
        """Whether it is working, rather than waiting for its peer."""
        self.cut = False

    def cut_off(self) -> None:
        self.cut = True
        with suppress(OSError):  # the peer is gone
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Exposition(ThreadingMixIn, WSGIServer):
    """Serves a registry on an address, from `start` on."""

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        context: Callable[[], ssl.SSLContext] | None,
        readers: frozenset[str] | None,
        unready: Callable[[], str] = lambda: "",
        name_of: Callable[[bytes], str] = lambda _: "",
    ) -> None:
        """`context` is called for each connection; None is plain text. `readers` None is everybody.

        `unready` says why calls are not answered, or nothing. `name_of` extracts the name from a certificate.
        """
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._context = context
        self.readers = readers
        self._name_of = name_of
        self._exposed = make_wsgi_app(registry)
        self._unready = unready
        self._lock = threading.Lock()
        self._requests: dict[socket.socket, _Request] = {}
        """Requests in flight, oldest first."""
        self._mine = threading.local()
        self._faults = RateLimitedErrors()
        self._spare = -1
        self._keep_spare()
        super().__init__(address, _Handler)
        self.set_app(self._answer)

    def name(self, certificate: bytes | None) -> str:
        """The name in the client's certificate; empty without one."""
        try:
            return self._name_of(certificate) if certificate else ""
        except ValueError:
            return ""

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="tmemd-metrics", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._has_room():
            with self._lock:
                self._requests[request] = _Request(request)
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._forget(request)
                raise
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._mine.request = self._requests[request]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            del self._requests[request]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in the request's thread, so that slow peers delay nobody else."""
        request.settimeout(_SECONDS)
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context().wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
            self._mine.request.socket = secured
            secured.do_handshake()
            super().finish_request(secured, client_address)

    def service_actions(self) -> None:
        """Between connections, twice a second: cut off requests beyond their deadline."""
        self._keep_spare()
        now = time.monotonic()
        with self._lock:
            for request in self._requests.values():
                if request.end < now:
                    request.cut_off()

    def _has_room(self) -> bool:
        """Whether another request may begin; the oldest that waits for its peer makes room."""
        with self._lock:
            going = [request for request in self._requests.values() if not request.cut]
            waiting = [request for request in going if not request.working]
            if len(going) < _AT_ONCE:
                return True
            if not waiting or len(self._requests) >= _MOST_THREADS:
                return False
            waiting[0].cut_off()
            return True

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno == errno.EINVAL:  # shutting down
                raise
            if self._give_spare():
                return super().get_request()
            time.sleep(_PAUSE)  # out of files, and likely to stay so for a moment
            raise

    def shutdown(self) -> None:
        """Stop at once, by waking the accepting thread."""
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
        """Close the spare file; returns whether there was one."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)
        return spare >= 0

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("metrics: a request from %s failed", client_address, exc_info=True)

    def server_bind(self) -> None:
        """As the base class, without looking up the host's name."""
        super(WSGIServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in ("/livez", "/readyz"):
            why = "" if path == "/livez" else self._unready()
            return _plain(start_response, "503 Service Unavailable" if why else "200 OK", why or "ok")
        if self.readers is not None and not environ[_SHOWN]:
            return _plain(start_response, "403 Forbidden", "the metrics are for those who show a certificate")
        if self.readers is not None and environ[_READER] not in self.readers:
            return _plain(start_response, "403 Forbidden", f"client {environ[_READER]!r} may not read the metrics")
        self._mine.request.working = True
        try:
            exposed: Iterable[bytes] = self._exposed(environ, start_response)
        except Exception as error:
            self._faults.log("the metrics cannot be read", error)
            return _plain(start_response, "500 Internal Server Error", f"the metrics cannot be read: {error}")
        finally:
            self._mine.request.working = False
        return exposed


def _plain(start_response: Any, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> dict[str, Any]:
        shown = self.connection.getpeercert(True) if isinstance(self.connection, ssl.SSLSocket) else None
        assert isinstance(self.server, Exposition)
        return {**super().get_environ(), _READER: self.server.name(shown), _SHOWN: bool(shown)}

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes are not logged."""
