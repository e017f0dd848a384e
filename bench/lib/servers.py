"""Servers to measure: tmemd and its peers, each a process of its own on a free port of loopback."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, ClassVar, Self

from bench.lib import process

_STARTS_WITHIN = 30.0
_STOPS_WITHIN = 30.0
_SHM = Path("/dev/shm")


class Server:
    """A server that is started by its `with` block and gone after it. It does not hear the terminal's interrupt."""

    name: ClassVar[str]
    program: ClassVar[str]
    client: ClassVar[str]

    def __init__(self) -> None:
        self.port = _free_port()
        self.arena: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the `with` block ends

    @classmethod
    def missing(cls) -> str | None:
        """What is not there that it takes to measure with it; None where all is."""
        if shutil.which(cls.program) is None:
            return f"there is no program {cls.program}"
        return None if importlib.util.find_spec(cls.client) else f"there is no Python package {cls.client}"

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that was started; others may be below it."""
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        """How to start it."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it; it takes connections when this returns."""
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self._await_ready(self._process)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9, of all its processes."""
        self._end(signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """What it has used of the processors so far."""
        return process.cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """What it has of the memory now."""
        return process.resident_bytes(self.pid, self.arena)

    def said(self) -> str:
        """What it has written."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def _ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _await_ready(self, started: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN
        while not self._ready():
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {self.said().strip()[-2000:]}")
            time.sleep(0.002)

    def _end(self, signum: signal.Signals) -> None:
        if self._process is None:
            return
        members = process.family(self._process.pid) if self._process.poll() is None else []
        self._process.send_signal(signum)
        try:
            self._process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None
            for member in members[1:]:
                _kill(member)


class Tmemd(Server):
    """Our daemon, on an arena of its own in shared memory that goes with the `with` block; or without a store."""

    name = "tmemd"
    program = sys.executable
    client = "tmem"

    def __init__(self, *flags: str, memory: str = "1GiB", null: bool = False) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="tmem-bench-", dir=_SHM if _SHM.is_dir() else None)
        self.arena = None if null else Path(self._directory.name) / "arena"
        store = "--store=null" if null else f"--arena={self.arena}"
        self._flags = (store, f"--memory={memory}", *flags)

    @staticmethod
    def knows(flag: str) -> bool:
        """Whether this version has a flag of that name."""
        told = subprocess.run([sys.executable, "-m", "tmemd", "--help"], capture_output=True, text=True, check=True)
        return re.search(rf"(^|\s){flag}\b", told.stdout) is not None

    @property
    def metrics_url(self) -> str:
        """Where the metrics are, if the flags have asked for them."""
        found = re.search(r"metrics on (\S+)", self.said())
        assert found, self.said()
        return found[1]

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tmemd", f"--listen={self.address}", *self._flags]

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._directory.cleanup()

    def _ready(self) -> bool:
        return "listening on " in self.said()


class Redis(Server):
    """Redis without persistence."""

    name = "redis"
    program = "redis-server"
    client = "redis"

    def command(self) -> list[str]:
        plain = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
        return [self.program, "--port", str(self.port), *plain]


class Memcached(Server):
    """Memcached with room for all that it is given."""

    name = "memcached"
    program = "memcached"
    client = "pymemcache"

    def __init__(self, megabytes: int = 4096) -> None:
        super().__init__()
        self._megabytes = megabytes

    def command(self) -> list[str]:
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [self.program, "-l", "127.0.0.1", "-p", str(self.port), "-m", str(self._megabytes), *user]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
