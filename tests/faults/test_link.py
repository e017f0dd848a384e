"""The link that other tests have their faults from does what it says."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.link import Link, link
from tests.lib.retry import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_ECHO = """
import socket
with socket.create_server(("", 7)) as server:
    print("ready", flush=True)
    while True:
        made, _ = server.accept()
        with made:
            while data := made.recv(65536):
                made.sendall(data)
"""
_ASK = """
import socket, sys, time
host, size, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with socket.create_connection((host, 7), patience) as asked:
    start = time.monotonic()
    asked.sendall(bytes(size))
    while size:
        size -= len(asked.recv(65536))
    print(time.monotonic() - start)
"""
_HEAR = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
    heard.bind(("", 7))
    print("ready", flush=True)
    while (data := heard.recv(100)) != b"end":
        print(data.decode(), flush=True)
"""
_TELL = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as told:
    for number in range(int(sys.argv[2])):
        told.sendto(b"%d" % number, (sys.argv[1], 7))
"""
_END = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as told:
    told.sendto(b"end", (sys.argv[1], 7))
"""


@pytest.fixture
def echo() -> Iterator[Link]:
    """A link with something at its far end that says back what it hears."""
    with link() as made:
        command = [*made.inside(made.far), sys.executable, "-c", _ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield made
            server.kill()


def _ask(made: Link, size: int, patience: float = 60) -> float | None:
    """How long the echo took, or None if it did not come."""
    command = [*made.inside(made.near), sys.executable, "-c", _ASK, made.far_address, str(size), str(patience)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def test_delay_loss_and_cut(echo: Link) -> None:
    assert _ask(echo, 1 << 20) is not None
    echo.delay = 0.05
    delayed = _ask(echo, 10)
    assert delayed is not None
    assert delayed >= 0.1
    echo.delay, echo.loss = 0.0, 0.05
    assert _ask(echo, 1 << 20) is not None
    echo.cut = True
    before, start = echo.carried, time.monotonic()
    assert _ask(echo, 10, patience=0.3) is None
    assert time.monotonic() - start >= 0.3
    assert echo.carried == before
    echo.cut, echo.loss = False, 0.0
    assert _ask(echo, 10) is not None


def test_reordering_and_duplicates() -> None:
    with link() as made:
        hear = [*made.inside(made.far), sys.executable, "-c", _HEAR]
        with subprocess.Popen(hear, stdout=subprocess.PIPE, text=True) as hearer:
            assert hearer.stdout is not None
            assert hearer.stdout.readline() == "ready\n"
            made.jitter, made.duplicates = 0.2, 0.5
            near = [*made.inside(made.near), sys.executable, "-c"]
            subprocess.run([*near, _TELL, made.far_address, "100"], check=True, timeout=60)
            eventually(lambda: made.carried >= 100 and not made.waiting)
            made.jitter, made.duplicates = 0.0, 0.0
            subprocess.run([*near, _END, made.far_address], check=True, timeout=60)
            heard = [int(line) for line in hearer.stdout]
    assert set(heard) == set(range(100))
    assert len(heard) > 110
    assert heard != sorted(heard)
