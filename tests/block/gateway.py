"""A SAN gateway and the tmemd it caches in, as processes that are started, stopped and killed by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest

from tests.block.stream import PATIENCE
from tests.block.wire import opened
from tests.daemon import Daemon
from tests.integration.commands import Command
from tests.retry import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.block.transmission import Client

POOL = "san"
NAME = ""


@lru_cache(maxsize=1)
def _there() -> bool:
    command = [sys.executable, "-m", "tmem.cli", "san", "--help"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def need_gateway() -> None:
    """Skip the test where there is no gateway to be tested."""
    if not _there():
        pytest.skip("this tmem has no `san`")


class Cache:
    """tmemd, at one address however often it is started."""

    def __init__(self, folder: Path, *flags: str, memory: str = "64MiB") -> None:
        self.address = f"unix:{folder}/cache.sock"
        self._flags, self._memory = flags, memory
        self.start()

    def start(self) -> None:
        self.daemon = Daemon(f"--nbd={self.address}", *self._flags, memory=self._memory)
        self.tmem = Command(self.daemon.address)

    def kill(self) -> None:
        self.daemon.kill()

    def stop(self) -> None:
        """As the kernel stops a process: its sockets stay, and nobody answers."""
        self.daemon.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.daemon.process.send_signal(signal.SIGCONT)


class Gateway:
    """`tmem san`, listening at one address however often it is started."""

    def __init__(self, folder: Path, backing: str, cache: str, *flags: str, within: Sequence[str] = ()) -> None:
        self.address = f"unix:{folder}/san.sock"
        arguments = [f"--backing={backing}", f"--server={cache}", f"--pool={POOL}", f"--listen={self.address}", *flags]
        self._command = [*within, sys.executable, "-m", "tmem.cli", "san", *arguments]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        eventually(lambda: self._listens() or self.process.poll() is not None)
        if self.process.poll() is not None:
            assert self.process.stdout is not None
            raise AssertionError(f"{self._command} ended: {self.process.stdout.read()}")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(self.address.removeprefix("unix:"))
            return True
        return False

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def detach(self) -> None:
        """An orderly end: the next attach may find the cache warm."""
        self._end(signal.SIGTERM)
        assert self.process.returncode == 0, self.process.returncode

    def _end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def client(self, timeout: float = PATIENCE) -> Client:
        return opened(self.address, NAME, contexts=(), timeout=timeout)


@contextlib.contextmanager
def cache(folder: Path, *flags: str, memory: str = "64MiB") -> Iterator[Cache]:
    """A tmemd that is gone afterwards."""
    need_gateway()
    running = Cache(folder, *flags, memory=memory)
    try:
        yield running
    finally:
        if running.daemon.process.poll() is None:
            running.go_on()
            running.kill()


@contextlib.contextmanager
def gateway(folder: Path, backing: str | os.PathLike[str], cache: str, *flags: str) -> Iterator[Gateway]:
    """A gateway that is gone afterwards."""
    need_gateway()
    running = Gateway(folder, os.fspath(backing), cache, *flags)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()
