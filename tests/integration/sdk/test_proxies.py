"""A proxy in the environment, as Docker and company networks set one, is never between a client and its server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lib.daemon import daemon
from tests.lib.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

_SDK = """
import sys, tmem
with tmem.connect(sys.argv[1], timeout=3) as store:
    assert store.pool("swap").put(1, {7: bytes(4096)})[7].stored
"""
_AIO = """
import asyncio, sys, tmem.aio
async def main():
    async with tmem.aio.connect(sys.argv[1], timeout=3) as store:
        assert (await (await store.pool("swap")).put(1, {7: bytes(4096)}))[7].stored
asyncio.run(main())
"""
_USERS = {
    "SDK": ("-c", _SDK, "ADDRESS"),
    "asyncio": ("-c", _AIO, "ADDRESS"),
    "CLI": ("-m", "tmem.cli", "--server", "ADDRESS", "--timeout", "3", "pool", "ls"),
    "probe": ("-m", "tmemd.probe", "ADDRESS"),
}
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "32MiB") as running:
        yield running.address


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """One with a proxy in all its variables, at which nobody answers, and no word of whom it is not for."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        proxies = dict.fromkeys([*_PROXIES, *map(str.upper, _PROXIES)], url)
        yield {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxies


@pytest.mark.parametrize("user", _USERS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_is_reached_past_a_proxy(server: str, environment: dict[str, str], user: str, host: str) -> None:
    address = server.replace("127.0.0.1", host)
    command = [sys.executable, *(address if part == "ADDRESS" else part for part in _USERS[user])]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
