"""Block devices to measure, each a server of its own at a Unix socket: nbdkit's, and an export of our daemon."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.lib.corpus import PAGE
from bench.lib.servers import Server, Tmemd

POLL = 50
"""Microseconds for which a connection looks for its next request before it sleeps: as an operator sets it for swap."""

_SPARE = 256 << 20


class Disk(Server):
    """A server at a Unix socket in a directory that goes with the `with` block."""

    program = "nbdkit"
    export = ""

    def __init__(self) -> None:
        super().__init__()
        self._home = tempfile.TemporaryDirectory(prefix="tmem-block-")
        self.socket = Path(self._home.name) / "nbd"

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which(cls.program) else f"there is no program {cls.program}"

    @property
    def uri(self) -> str:
        """For fio and libnbd."""
        return uri(self.socket, self.export)

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        super().start()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._home.cleanup()

    def _ready(self) -> bool:
        return answers(self.socket)


class NbdkitMemory(Disk):
    """nbdkit's device in memory, as it is written."""

    name = "nbdkit memory"
    allocator = "sparse"

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def command(self) -> list[str]:
        about = [f"size={self._size}", f"allocator={self.allocator}"]
        return [self.program, "--foreground", "--unix", str(self.socket), "memory", *about]


class NbdkitZstd(NbdkitMemory):
    """The same, compressed with zstd in blocks of 32 KiB."""

    name = "nbdkit memory allocator=zstd"
    allocator = "zstd"


class NbdkitProxy(Disk):
    """nbdkit between a client and another server, passing everything on: what a server in between costs at least."""

    name = "nbdkit nbd, which only passes on"

    def __init__(self, behind: Path) -> None:
        super().__init__()
        self._behind = behind

    def command(self) -> list[str]:
        return [self.program, "--foreground", "--unix", str(self.socket), "nbd", f"socket={self._behind}"]


class NbdDaemon(Tmemd):
    """Our daemon with its block front at a Unix socket."""

    def __init__(self, *flags: str, memory: str = "512MiB") -> None:
        self._home = tempfile.TemporaryDirectory(prefix="tmem-block-")
        self.socket = Path(self._home.name) / "nbd"
        super().__init__(f"--nbd=unix:{self.socket}", *flags, memory=memory)

    def create(self, export: str, size: int, codec: str = "lz4", block: int = PAGE) -> None:
        """Make an export that several connections may have open."""
        settings = ("--size", str(size), "--codec", codec, "--block-size", str(block), "--multi-conn")
        tmem_cli(self.address, "export", "create", export, *settings)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._home.cleanup()

    def _ready(self) -> bool:
        return super()._ready() and answers(self.socket)


class TmemExport(NbdDaemon):
    """An export of a daemon of ours, with memory for all of it."""

    export = "bench"

    def __init__(self, size: int, codec: str = "lz4", poll: int = POLL, block: int = PAGE) -> None:
        super().__init__(f"--nbd-poll={poll}", memory=str(size + _SPARE))
        self._size, self._codec, self._block = size, codec, block

    @property
    def uri(self) -> str:
        """For fio and libnbd."""
        return uri(self.socket, self.export)

    def start(self) -> None:
        super().start()
        self.create(self.export, self._size, self._codec, self._block)


def uri(path: Path, export: str) -> str:
    """Of an export at a Unix socket."""
    return f"nbd+unix:///{export}?socket={path}"


def answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def tmem_cli(address: str, *arguments: str) -> None:
    """Run the command line against a daemon."""
    command = [sys.executable, "-m", "tmem.cli", "--server", address, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"tmem {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
