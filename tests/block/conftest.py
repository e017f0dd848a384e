"""The servers under test, each started once, and clients of their export, which each test finds empty."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.block.lib import servers
from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.block.lib.client import Client
    from tests.block.lib.servers import Server


@pytest.fixture(scope="session", autouse=True)
def host_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gateways know of each other here, and not with those of the machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMEM_SAN_HOST_STATE", str(tmp_path_factory.mktemp("host")))
        yield


@pytest.fixture(scope="session")
def tmemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.ours(tmp_path_factory.mktemp("tmemd")) as running:
        yield running


@pytest.fixture(scope="session")
def nbdkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.reference(tmp_path_factory.mktemp("nbdkit")) as running:
        yield running


@pytest.fixture(scope="session")
def blocks(tmemd: Server) -> Server:
    """Ours, its export of blocks of 64 KiB."""
    return replace(tmemd, name=servers.BLOCKS)


@pytest.fixture(params=["tmemd", "nbdkit"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    running: Server = request.getfixturevalue(request.param)
    return running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client that agreed on structured replies and base:allocation."""
    with cleared(server) as connected:
        yield connected


@pytest.fixture
def disk(server: Server) -> Callable[[], Client]:
    """Makes another client of the same export."""
    return lambda: opened(server.address, server.name)


def cleared(server: Server) -> Client:
    """A client of the export, which is empty now."""
    connected = opened(server.address, server.name)
    connected.do(Cmd.TRIM, 0, servers.SIZE)
    return connected
