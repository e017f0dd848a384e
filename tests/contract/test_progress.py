"""Contract of every client: a time-out is of progress. What goes on over a slow link is carried to its end.

The link is as slow beside the time-out here as one of 3 Mbit/s is beside the usual one.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.faults.slow import slow
from tests.lib.blocking import blocking
from tests.lib.daemon import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 5 << 20
RATE = 7 << 18
TIMEOUT = 2.0


@pytest.fixture(scope="module")
def data() -> bytes:
    """Pages that do not compress."""
    return random.Random(5).randbytes(SIZE)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "128MiB") as running:
        yield running.address


@pytest.mark.parametrize(("transport", "codec"), [("", "lz4"), ("grpc", "zstd"), ("aio", "lz4")])
def test_a_transfer_that_goes_on_is_not_broken_off(
    server: str, data: bytes, transport: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect: Any = blocking if transport == "aio" else tmem.connect
    monkeypatch.setenv("TMEM_TRANSPORT", transport)
    with slow(server, RATE) as address, connect(address, timeout=TIMEOUT) as store:
        pool = store.pool(codec, codec=codec)
        begun = time.monotonic()
        assert pool.put_range(1, 0, data).all_stored
        assert time.monotonic() - begun > TIMEOUT, "the link was not slow"
        got, mask = pool.get_range(1, 0, SIZE // 4096)
        assert all(mask)
        assert got == data
        assert store.client_stats().failed_calls == 0
