"""A daemon for the tests of a module, and a client of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lib.daemon import Client, Daemon, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon() as running:
        yield running


@pytest.fixture
def client(running: Daemon) -> Iterator[Client]:
    client = Client(running.address)
    yield client
    client.close()
