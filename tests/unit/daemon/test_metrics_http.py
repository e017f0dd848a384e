"""The metrics' server: how it ends, whom it serves, and what it says of health."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.registry import Collector

from tests.lib.support import PATIENCE
from tmemd.telemetry.metrics_http import Exposition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

HOUR = 3600.0


@contextmanager
def exposition(registry: CollectorRegistry, unready: list[str]) -> Iterator[Exposition]:
    server = Exposition(("127.0.0.1", 0), registry, None, None, lambda: unready[0] if unready else "")
    with closing(server.socket):
        server.start()
        yield server
        server.shutdown()


def fetch(server: Exposition, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=PATIENCE) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_shutting_down_does_not_wait_for_the_next_look() -> None:
    server = Exposition(("127.0.0.1", 0), CollectorRegistry(), None, None)
    serving = threading.Thread(target=server.serve_forever, args=(HOUR,), daemon=True)
    serving.start()
    with closing(server.socket):
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as page:
            assert page.status == 200
        ending = threading.Thread(target=server.shutdown, daemon=True)
        ending.start()
        ending.join(PATIENCE)
        serving.join(PATIENCE)
    assert not any(thread.is_alive() for thread in (ending, serving))


def test_who_never_reads_an_answer_makes_room_for_the_next() -> None:
    """As many as are served at once ask for more than their sockets hold, and read nothing."""
    registry = CollectorRegistry()
    large = Gauge("large", "Larger than any buffer.", ["label"], registry=registry)
    for number in range(4):
        large.labels("x" * (4 << 20) + str(number)).set(1)
    with exposition(registry, []) as server, ExitStack() as stack:
        for _ in range(16):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.server_port))
            slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert slow.recv(1)
        status, body = fetch(server, "/metrics")
        assert (status, body.count("large{")) == (200, 4)
        assert fetch(server, "/livez") == (200, "ok\n")


def test_health_is_told_for_next_to_nothing() -> None:
    unready: list[str] = []
    with exposition(CollectorRegistry(), unready) as server:
        assert fetch(server, "/readyz") == fetch(server, "/livez") == (200, "ok\n")
        unready.append("stopping")
        assert fetch(server, "/readyz") == (503, "stopping\n")
        assert fetch(server, "/livez") == (200, "ok\n")


class Damaged(Collector):
    """What cannot be read."""

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("shard 3 is damaged")


def test_one_fault_is_logged_once_however_often_it_is_scraped(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Damaged())
    with exposition(registry, []) as server:
        for _ in range(3):
            assert fetch(server, "/metrics") == (500, "the metrics cannot be read: shard 3 is damaged\n")
    (told,) = caplog.records
    assert told.exc_info is not None
    assert capfd.readouterr().err == ""
