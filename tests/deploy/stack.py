"""A Compose project of deploy/ with a name, ports, an image and a folder for the arena of its own.

So nothing of a deployment that runs on the same engine is touched. The engine is the one that DOCKER_HOST or docker's
context names; it has to be on this machine, for folders of it are mounted.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.lib.support import PATIENCE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = "tmem-test:local"
BUILD_SECONDS = 3600.0
T = TypeVar("T")


def why_not() -> str | None:
    """Why there is no engine for these tests; None if there is one."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    asked = docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}", check=False)
    host = os.environ.get("DOCKER_HOST") or asked.strip()
    if not host.startswith("unix://"):
        return f"the engine at {host} is not known to be on this machine"
    for command in (("info", "--format", "{{.ServerVersion}}"), ("compose", "version"), ("buildx", "version")):
        tried = subprocess.run(["docker", *command], capture_output=True, text=True, check=False)
        if tried.returncode:
            return f"docker {command[0]}: {tried.stderr.strip() or tried.stdout.strip()}"
    return None


def docker(*arguments: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
    """Run docker; what it printed. A failure names what it said."""
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0 or not check, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Stack:
    """A project, up or not."""

    def __init__(self, name: str, shm: Path, environment: Mapping[str, str], *files: str) -> None:
        self.name, self.shm, self.environment = name, shm, dict(environment)
        self._files = [word for file in ("compose.yaml", *files) for word in ("--file", str(DEPLOY / file))]

    def compose(self, *arguments: str, check: bool = True) -> str:
        return docker(
            "compose", "--project-name", self.name, *self._files, *arguments, check=check, environment=self.environment
        )

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> Any:
        (found,) = json.loads(docker("inspect", self.container(service)))
        return found

    def python(self, code: str, *arguments: str) -> str:
        """Run Python in the daemon's container."""
        return self.compose("exec", "-T", "tmemd", "python", "-c", code, *arguments).strip()

    def healthy(self, *services: str) -> None:
        """Wait until every service is."""
        for service in services:
            assert until(lambda s=service: self.inspect(s)["State"]["Health"]["Status"] == "healthy"), (  # type: ignore[misc]
                f"{service}: {self.inspect(service)['State']}\n{self.compose('logs', service)}"
            )

    def prometheus(self, path: str, **parameters: str) -> Any:
        port = self.environment["PROMETHEUS_PORT"]
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.prometheus("query", query=expression)["result"]
        return result


def until(ask: Callable[[], T]) -> T | None:
    """What `ask` gives as soon as that is true; in the end whatever it gives."""
    end = time.monotonic() + PATIENCE
    while True:
        found = None
        with suppress(OSError):  # it is not up yet
            found = ask()
        if found or time.monotonic() > end:
            return found
        time.sleep(0.5)


@contextmanager
def stack(name: str, folder: Path, *files: str, **environment: str) -> Iterator[Stack]:
    """A project that is not up yet, and is taken away with all that belongs to it."""
    ports = {f"{service}_PORT": str(free_port()) for service in ("TMEM", "PROMETHEUS", "GRAFANA")}
    with shared_memory() as shm:
        settings = {"TMEM_IMAGE": IMAGE, "TMEM_SHM": str(shm), **ports, **environment}
        made = Stack(f"tmem-test-{name}-{os.getpid()}", shm, settings, *files)
        try:
            yield made
        finally:
            (folder / "log").write_text(made.compose("logs", "--no-color", check=False))
            made.compose("--profile", "demo", "down", "--volumes", "--remove-orphans", "--timeout", "20", check=False)


@contextmanager
def shared_memory() -> Iterator[Path]:
    """A folder in /dev/shm that any user may make files in, as in /dev/shm itself."""
    folder = Path(tempfile.mkdtemp(prefix="tmem-test-", dir="/dev/shm"))
    folder.chmod(0o1777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
