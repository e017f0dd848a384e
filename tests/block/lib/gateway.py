"""A SAN gateway and the tmemd it caches in, as processes that are started, stopped and killed by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.handshake import opened
from tests.block.lib.stream import PATIENCE
from tests.lib.command import Command
from tests.lib.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.block.lib.client import Client

POOL = "san"
NAME = ""


@lru_cache(maxsize=1)
def _there() -> bool:
    command = [sys.executable, "-m", "tmem.cli", "san", "--help"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def refused(folder: Path, backing: str, where: str, *flags: str, status: int = 1) -> str:
    """What a gateway says that does not start."""
    line = command(folder, backing, where, *flags)
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    said = running.stdout.readline()
    if said:
        running.kill()
    _, told = running.communicate(timeout=PATIENCE)
    assert (said, running.returncode) == ("", status), (said, told)
    return told


def need_gateway() -> None:
    """Skip the test where there is no gateway to be tested."""
    if not _there():
        pytest.skip("this tmem has no `san`")


class Cache:
    """tmemd with an arena and a pool in it, at one address however often it is started."""

    def __init__(
        self, folder: Path, kind: str = "--inclusive", *, memory: str = "64MiB", flags: Sequence[str] = ()
    ) -> None:
        self.address = f"unix:{folder}/cache.sock"
        self._flags = f"--nbd={self.address}", f"--arena={folder}/arena", *flags
        self._kind, self._memory = kind, memory
        self.start()
        self.make_pool()

    def start(self) -> None:
        self.daemon = Daemon(*self._flags, memory=self._memory)
        self.tmem = Command(self.daemon.address, patience=PATIENCE)

    def make_pool(self) -> None:
        """Make the pool, unless a gateway that came back has had it made."""
        made = self.tmem.run("pool", "create", POOL, "--kind=ephemeral", self._kind)
        assert made.exit_code == 0 or f"pool '{POOL}' exists" in made.output, made.output

    def kill(self) -> None:
        self.daemon.kill()

    def stop(self) -> None:
        """As the kernel stops a process: its sockets stay, and nobody answers."""
        self.daemon.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.daemon.process.send_signal(signal.SIGCONT)


def command(folder: Path, backing: str, cache: str, *flags: str, tls: Sequence[str] = ()) -> list[str]:
    """Starts a gateway that listens at `folder`; of flags given twice the last counts."""
    where = f"--backing={backing}", f"--pool={POOL}", f"--listen=unix:{folder}/san.sock", f"--state={folder}/state"
    return [sys.executable, "-m", "tmem.cli", "--server", cache, *tls, "san", *where, *flags]


class Gateway:
    """`tmem san`, listening at one address however often it is started."""

    def __init__(
        self, folder: Path, backing: str, cache: str, *flags: str, within: Sequence[str] = (), tls: Sequence[str] = ()
    ) -> None:
        self.address = f"unix:{folder}/san.sock"
        self._command = [*within, *command(folder, backing, cache, *flags, tls=tls)]
        self._log = folder / "san.err"
        self.start()

    def start(self) -> None:
        """Start it; it is ready when this returns."""
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said.startswith("ready: "), (self._command, self.said, self._log.read_text())

    def told(self) -> str:
        """What it said of itself, beside that it is ready."""
        return self._log.read_text()

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

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, timeout: float = PATIENCE) -> Client:
        return opened(self.address, NAME, contexts=(), timeout=timeout)


@contextlib.contextmanager
def cache(
    folder: Path, kind: str = "--inclusive", *, memory: str = "64MiB", flags: Sequence[str] = ()
) -> Iterator[Cache]:
    """A tmemd that is gone afterwards."""
    need_gateway()
    running = Cache(folder, kind, memory=memory, flags=flags)
    try:
        yield running
    finally:
        if running.daemon.process.poll() is None:
            running.go_on()
            running.kill()


@contextlib.contextmanager
def gateway(
    folder: Path,
    backing: str | os.PathLike[str],
    cache: str,
    *flags: str,
    within: Sequence[str] = (),
    tls: Sequence[str] = (),
) -> Iterator[Gateway]:
    """A gateway that is gone afterwards."""
    need_gateway()
    running = Gateway(folder, os.fspath(backing), cache, *flags, within=within, tls=tls)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()
