"""A real Prometheus that scrapes a real daemon with the rules of deploy/, for as long as a test needs it."""

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.lib.support import PATIENCE

DEPLOY = Path(__file__).parents[2] / "deploy"
T = TypeVar("T")


class Prometheus:
    """A running one, asked over its HTTP API."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self._url = url
        self._process = process

    def get(self, path: str, **parameters: str) -> Any:
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{self._url}{path}{query}", timeout=PATIENCE) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise  # not ready yet
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        return json.loads(body)["data"] if path.startswith("/api/") else body

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return result

    def until(self, ask: Callable[[], T], seconds: float = PATIENCE) -> T | None:
        """What `ask` gives as soon as that is true; after so many seconds whatever it gives."""
        end = time.monotonic() + seconds
        while True:
            assert self._process.poll() is None, "Prometheus ended"
            found = None
            with suppress(urllib.error.URLError):  # it is not ready yet
                found = ask()
            if found or time.monotonic() > end:
                return found
            time.sleep(0.1)


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the configuration of deploy/, but for the target, and a second between scrapes."""
    port = _free_port()
    (folder / "prometheus.yml").write_text(_config(target))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    running = Prometheus(f"http://127.0.0.1:{port}", process)
    try:
        assert running.until(lambda: running.get("/-/ready")), (folder / "log").read_text()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _config(target: str) -> str:
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    text = re.sub(r"(scrape|evaluation)_interval: \w+", r"\1_interval: 1s", text)
    assert "tmemd:9117" in text
    return text.replace("tmemd:9117", target).replace("rules/*.yml", str(DEPLOY / "prometheus" / "rules" / "*.yml"))


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
