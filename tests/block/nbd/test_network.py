"""An export over a network with faults: slow, lossy, cut for a while. What clients copied is right in the end.

The outages here are short; how long a client waits for a server is its own affair (`nbd-client -timeout`).
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd
from tests.block.lib.servers import program
from tests.block.lib.stream import PATIENCE, BrokenError
from tests.faults.link import Link, link
from tests.lib.daemon import Daemon
from tests.lib.retry import eventually
from tests.lib.support import noise, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.block.lib.client import Client

SIZE = 4 << 20
PORT = 10809
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}


@pytest.fixture
def network() -> Iterator[Link]:
    """A tmemd at the far end, with an export of `SIZE` bytes."""
    with link() as made:
        far = made.inside(made.far)
        address = f"tcp:{made.far_address}:{PORT}"
        running = Daemon(f"--nbd={address}", "--insecure", within=far)
        try:
            tmem = [*far, sys.executable, "-m", "tmem.cli", "--server", running.address]
            subprocess.run([*tmem, "export", "create", "disk", "--size", str(SIZE), "--multi-conn"], check=True)
            subprocess.run([*tmem, "export", "create", "swap", "--size", str(SIZE), "--codec=zstd:19"], check=True)
            yield made
        finally:
            running.kill()


@pytest.fixture
def near(network: Link) -> Iterator[Callable[[], Client]]:
    """Connects a client of the near end to an export `swap`, that of one connection."""
    with ThreadPoolExecutor(1, initializer=network.enter, initargs=(network.near,)) as inside:

        def connect() -> Client:
            return inside.submit(opened, f"tcp:{network.far_address}:{PORT}", "swap").result(PATIENCE)

        yield connect


def copy(made: Link, source: str, target: str) -> None:
    """Nbdcopy at the near end."""
    line = [*made.inside(made.near), program("nbdcopy"), "--connections=2", source, target]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def outage(made: Link, after: int, count: int = 3) -> Iterator[None]:
    """Cut the link now and then while something goes on: each time for as long as a client tries to send in vain."""
    over = threading.Event()

    def wait(goal: int) -> None:
        eventually(lambda: made.carried >= goal or over.is_set())

    def cut() -> None:
        for _ in range(count):
            wait(made.carried + after)
            made.cut = True
            over.wait(0.5)
            made.cut = False

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("fault", ["none", "delay", "loss", "outages"])
def test_a_copy_over_a_network_with_faults(network: Link, tmp_path: Path, fault: str) -> None:
    image, back, dice = tmp_path / "image", tmp_path / "back", random.Random(2)
    image.write_bytes(b"".join(dice.choice((noise(at, 65536), run(at, 16), bytes(65536))) for at in range(SIZE >> 16)))
    uri = f"nbd://{network.far_address}:{PORT}/disk"
    network.delay = 0.005 if fault == "delay" else 0.0
    network.loss = 0.01 if fault == "loss" else 0.0
    with outage(network, after=300, count=3 if fault == "outages" else 0):
        copy(network, str(image), uri)
        copy(network, uri, str(back))
    assert back.read_bytes() == image.read_bytes()


def test_calls_from_before_an_outage_never_land_after_later_ones(network: Link, near: Callable[[], Client]) -> None:
    """A client gives its connection up while the network is cut. Its system still delivers what it had sent, later."""
    for turn in range(3):
        old, older, newer = near(), bytes([1 + turn]) * 4096, bytes([101 + turn]) * 4096
        old.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        network.cut = True
        old.submit(Cmd.WRITE, 4096, 64 * 4096, 0, run(0, 64))
        old.submit(Cmd.WRITE, 0, 4096, 0, older)
        old.close()
        network.cut = False
        with let_in(near) as new:
            assert new.read(0, 4096) in (older, bytes([100 + turn]) * 4096, bytes(4096))
            new.write(0, newer)
            wait_for_orphans(network)
            assert new.read(0, 4096) == newer


def wait_for_orphans(made: Link) -> None:
    """Wait until the near end has nothing more to deliver of connections that their users have closed."""
    line = [*made.inside(made.near), "ss", "-Htan", "state", "fin-wait-1", "state", "closing", "state", "last-ack"]
    eventually(lambda: not subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def let_in(near: Callable[[], Client]) -> Client:
    """Come back again and again until the old connection is known to be gone."""
    let: list[Client] = []

    def come() -> bool:
        try:
            let.append(near())
        except BrokenError as refused:
            if "is in use by" not in str(refused):
                raise
        return bool(let)

    eventually(come)
    return let[0]
