"""Too many connections: who is silent keeps nobody out, strangers take no seat that is kept for an export's clients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.handshake import opened
from tests.block.lib.stream import BrokenError, connect
from tests.lib.command import Command
from tests.lib.daemon import Daemon, daemon
from tests.lib.exposition import samples
from tests.lib.retry import eventually
from tests.lib.support import page

if TYPE_CHECKING:
    from collections.abc import Iterator

SILENT = 300
TRIES = 24
SIZE = 1 << 20


def _turned_away(running: Daemon, reason: str) -> float:
    return samples(running.metrics_url)["tmem_nbd_turned_away_total", frozenset({("reason", reason)})]


def _now(running: Daemon, name: str) -> float:
    return samples(running.metrics_url)[name, frozenset()]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, str, Command]]:
    """A daemon with NBD over TCP and flags of the test's own; its NBD address and its command."""
    flags = getattr(request, "param", ())
    with daemon("--nbd=tcp:127.0.0.1:0", *flags) as running:
        command = Command(running.address)
        (address,) = command.json("export", "ls")["addresses"]
        yield running, address, command


def test_silent_connections_keep_nobody_out(place: tuple[Daemon, str, Command]) -> None:
    running, address, command = place
    command("export", "create", "disk", "--size", SIZE, "--multi-conn")
    with ExitStack() as stack:
        witness = stack.enter_context(opened(address, "disk"))
        witness.write(0, page(1))
        for _ in range(SILENT):
            stack.enter_context(connect(address))
        for _ in range(TRIES):
            with opened(address, "disk") as client:
                assert client.read(0, 4096) == page(1)
        assert witness.read(0, 4096) == page(1)
        eventually(lambda: _turned_away(running, "handshakes") >= SILENT - 64)
        assert 0 < _now(running, "tmem_nbd_handshakes") <= 64
        assert _now(running, "tmem_nbd_connections") == 1
    running.process.terminate()
    _, log = running.process.communicate()
    warned = [line for line in log.splitlines() if "to make room for a newer connection" in line]
    assert 1 <= len(warned) < 10


@pytest.mark.parametrize("place", [["--nbd-connections=4", "--nbd-client-connections=9"]], indirect=True)
def test_strangers_take_no_seat_that_an_export_keeps_for_its_clients(place: tuple[Daemon, str, Command]) -> None:
    running, address, command = place
    command("export", "create", "open", "--size", SIZE, "--multi-conn")
    command("export", "create", "kept", "--size", SIZE, "--allow", "local")
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(opened(address, "open"))
        with pytest.raises(BrokenError, match="4 connections of the server are in use or reserved"):
            opened(address, "open")
        stack.enter_context(opened(address, "kept"))
        assert _turned_away(running, "connections") == 1


@pytest.mark.parametrize("place", [["--nbd-client-connections=2"]], indirect=True)
def test_one_client_has_its_limit(place: tuple[Daemon, str, Command]) -> None:
    running, address, command = place
    command("export", "create", "open", "--size", SIZE, "--multi-conn")
    with opened(address, "open"), opened(address, "open"):
        with pytest.raises(BrokenError, match="2 connections, the maximum for one client"):
            opened(address, "open")
        assert _turned_away(running, "client_connections") == 1
    opened(address, "open").close()


@pytest.mark.parametrize("place", [["--nbd-handshake-timeout=1"]], indirect=True)
def test_a_handshake_has_its_time(place: tuple[Daemon, str, Command]) -> None:
    running, address, _ = place
    with connect(address) as silent:
        while silent.recv(4096):
            pass
    eventually(lambda: _turned_away(running, "timeout") == 1)
