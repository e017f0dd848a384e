"""The store and the command of a module's `server`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tmem
from tests.lib.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(server: str) -> Iterator[tmem.Store]:
    """The daemon's store, without pools."""
    with tmem.connect(server) as store:
        yield store
        for pool in store.pools():
            pool.destroy()


@pytest.fixture
def cli(server: str, store: tmem.Store) -> Command:  # noqa: ARG001 it has no pools
    return Command(server)
