"""NBD servers to test with: tmemd, and nbdkit as the reference by which the tests themselves are known to be right."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.stream import PATIENCE
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.retry import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 16 << 20
NAME = "disk"
BLOCKS = "blocks"
"""An export of blocks of 64 KiB."""
LARGE, LARGE_SIZE = "large", 64 << 20


@dataclass(frozen=True)
class Server:
    """A running server with an export of `SIZE` bytes; all that its kernel keeps of it can be asked."""

    kind: str
    address: str
    tcp: str
    pid: int
    name: str = NAME

    @property
    def uri(self) -> str:
        """The export as clients name it."""
        return uri(self.address, self.name)

    def resident(self) -> int:
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))


def uri(address: str, name: str) -> str:
    """An export by the address of its server, as NBD URIs are written."""
    kind, _, place = address.partition(":")
    return f"nbd+unix:///{name}?socket={place}" if kind == "unix" else f"nbd://{place}/{name}"


def program(name: str) -> str:
    """The path of a program; the test is skipped where it is not installed."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def end(pid: int, how: signal.Signals = signal.SIGTERM) -> None:
    """End a process that need not be a child, and wait until it is gone."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(watched) as watched_file:
        signal.pidfd_send_signal(watched, how)
        poll = select.poll()
        poll.register(watched_file, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), f"{pid} does not end"


@contextmanager
def nbdkit(folder: Path, *arguments: str, name: str = "nbdkit") -> Iterator[tuple[str, int]]:
    """An nbdkit on a Unix socket; its address and process. It listens when it has gone into the background."""
    socket, pidfile = folder / f"{name}.sock", folder / f"{name}.pid"
    subprocess.run(
        [program("nbdkit"), "--unix", socket, "--pidfile", pidfile, *arguments], check=True, timeout=PATIENCE
    )
    eventually(lambda: pidfile.exists() and pidfile.read_text().endswith("\n"))
    pid = int(pidfile.read_text())
    try:
        yield f"unix:{socket}", pid
    finally:
        end(pid)


@contextmanager
def reference(folder: Path) -> Iterator[Server]:
    """Nbdkit with memory."""
    with nbdkit(folder, "memory", f"size={SIZE}") as (address, pid):
        yield Server("nbdkit", address, "", pid)


@lru_cache(maxsize=1)
def _front() -> bool:
    helped = subprocess.run([sys.executable, "-m", "tmemd", "--help"], capture_output=True, text=True, check=True)
    return "--nbd" in helped.stdout


@contextmanager
def ours(folder: Path, *flags: str, memory: str = "256MiB", size: int = SIZE) -> Iterator[Server]:
    """Tmemd with an export."""
    if not _front():
        pytest.skip("this tmemd has no --nbd")
    address = f"unix:{folder}/tmemd.sock"
    with daemon(f"--nbd={address}", *flags, memory=memory) as running:
        command = Command(running.address)
        command("export", "create", NAME, "--size", size, "--multi-conn")
        command("export", "create", BLOCKS, "--size", size, "--multi-conn", "--block-size", "64KiB")
        command("export", "create", LARGE, "--size", LARGE_SIZE, "--multi-conn")
        yield Server("tmemd", address, "", running.process.pid)
