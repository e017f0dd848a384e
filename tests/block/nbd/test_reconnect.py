"""A client whose connection broke comes back: nothing that it sent before lands after what it sends now.

The daemon is stopped while requests are sent to it, so that they lie where a dead connection leaves them; the export's
codec is a slow one, so that they take their time once it goes on.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd, Err
from tests.lib.daemon import Daemon, daemon
from tests.lib.retry import eventually
from tests.lib.support import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.block.lib.client import Client

PAGE = 4096
OLD, NEW = b"A" * PAGE, b"B" * PAGE
BEFORE = run(0, 12)
"""What is written before `OLD`. It takes a while, and fits into what the system holds for a socket."""
TIMES = 4


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(f"--nbd=unix:{tmp_path_factory.mktemp('nbd')}/sock", "--nbd=tcp:127.0.0.1:0") as started:
        yield started


@pytest.fixture(params=["one connection", "multi-conn"])
def store(running: Daemon, request: pytest.FixtureRequest) -> Iterator[tmem.Store]:
    """With an export `disk`, which is removed afterwards."""
    with tmem.connect(running.address) as connected:
        connected.create_export("disk", 1 << 20, codec="zstd:19", multi_conn=request.param == "multi-conn")
        yield connected
        connected.remove_export("disk", force=True)


@pytest.fixture(params=["unix", "tcp"])
def address(running: Daemon, request: pytest.FixtureRequest) -> str:
    addresses: list[str] = running._said(r"exports on (.*)").split(", ")
    return next(one for one in addresses if one.startswith(request.param))


@contextmanager
def stopped(running: Daemon) -> Iterator[None]:
    """What is sent meanwhile stays in the sockets."""
    try:
        running.process.send_signal(signal.SIGSTOP)
        yield
    finally:
        running.process.send_signal(signal.SIGCONT)


def abandon(client: Client) -> None:
    """Send much, with `OLD` at its end, and be gone."""
    client.submit(Cmd.WRITE, PAGE, len(BEFORE), 0, BEFORE)
    client.submit(Cmd.WRITE, 0, PAGE, 0, OLD)
    client.close()


def alone(store: tmem.Store) -> None:
    """Wait until there is one connection, all others having come to their end."""
    eventually(lambda: len(store.exports()[0].clients) == 1)


def test_what_a_dead_connection_left_never_lands_after_a_new_ones_writes(
    running: Daemon, store: tmem.Store, address: str
) -> None:
    for _ in range(TIMES):
        old = opened(address, "disk")
        with stopped(running):
            abandon(old)
        with opened(address, "disk") as new:
            new.write(0, NEW)
            alone(store)
            assert new.read(0, PAGE) == NEW


@pytest.mark.parametrize("store", ["multi-conn"], indirect=True)
def test_what_a_dead_connection_left_never_lands_after_another_ones_writes(
    running: Daemon, store: tmem.Store, address: str
) -> None:
    with opened(address, "disk") as other:
        for _ in range(TIMES):
            old = opened(address, "disk")
            with stopped(running):
                abandon(old)
                cookie = other.submit(Cmd.WRITE, 0, PAGE, 0, NEW)
            assert other.answer(cookie).error == Err.OK
            alone(store)
            assert other.read(0, PAGE) == NEW


@pytest.mark.parametrize("store", ["multi-conn"], indirect=True)
def test_connections_that_die_together_do_not_wait_for_each_other(
    running: Daemon, store: tmem.Store, address: str
) -> None:
    for _ in range(TIMES):
        several = [opened(address, "disk") for _ in range(4)]
        with stopped(running):
            for one in several:
                abandon(one)
        with opened(address, "disk") as new:
            new.write(0, NEW)
            alone(store)
            assert new.read(0, PAGE) == NEW
