"""A gateway from its first moment to its end: signals, and standard streams that are closed or that nobody reads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.gateway import command, gateway
from tests.block.lib.handshake import opened
from tests.block.lib.san import SIZE, fill
from tests.block.lib.stream import PATIENCE
from tests.lib.retry import eventually
from tests.lib.support import noise

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = "unix:/nobody"
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    fill(tmp_path / "volume")
    return tmp_path / "volume"


def test_other_signals_end_nothing(volume: Path, tmp_path: Path) -> None:
    with gateway(tmp_path, volume, NOBODY) as attached, attached.client() as client:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE):
            attached.process.send_signal(number)
            client.write(0, noise(number))
        assert client.read(0, 4096) == noise(signal.SIGPIPE)
        attached.detach()
        assert "detached: " in attached.told()


@pytest.mark.parametrize("loaded", ["", "tmem_engine"], ids=["at once", "later"])
def test_sigterm_counts_before_it_is_ready(volume: Path, tmp_path: Path, loaded: str) -> None:
    """Process 1 of a namespace, which no signal ends that it does not handle."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode != 0:
        pytest.skip("no namespace can be made here")
    line = [*NAMESPACE, *command(tmp_path, str(volume), NOBODY)]
    running = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        children = f"/proc/{running.pid}/task/{running.pid}/children"
        eventually(lambda: _text(children) != "")
        process = int(_text(children))
        eventually(lambda: _handles_sigterm(process) and loaded in _text(f"/proc/{process}/maps"))
        os.kill(process, signal.SIGTERM)
        running.wait(PATIENCE)
    finally:
        running.kill()


def _handles_sigterm(process: int) -> bool:
    caught = next((line for line in _text(f"/proc/{process}/status").splitlines() if line.startswith("SigCgt")), "_ 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def test_the_end_waits_for_nobody_who_reads(volume: Path, tmp_path: Path) -> None:
    """Standard error is a pipe that is full from the start."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    try:
        while os.write(writes, bytes(65536)):
            pass
    except BlockingIOError:
        os.set_blocking(writes, True)
    line = command(tmp_path, str(volume), NOBODY)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=writes, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("ready: ")
        with opened(f"unix:{tmp_path}/san.sock", "", contexts=()) as client:
            client.write(0, noise(1))
            assert client.read(0, 4096) == noise(1)
        running.terminate()
        assert running.wait(PATIENCE) == 0
    assert volume.read_bytes()[:4096] == noise(1)
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_standard_streams_may_be_closed(volume: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    line = command(tmp_path, str(volume), NOBODY)
    shut = " ".join(f"{number}>&-" for number in closed)
    socket = f"{tmp_path}/san.sock"
    with subprocess.Popen(["sh", "-c", f'exec "$@" {shut}', "sh", *line], stdout=subprocess.DEVNULL) as running:
        eventually(lambda: os.path.exists(socket))
        with opened(f"unix:{socket}", "", contexts=()) as client:
            client.write(0, noise(1))
            assert len(client.read(0, SIZE)) == SIZE
            for number in closed:
                assert os.readlink(f"/proc/{running.pid}/fd/{number}") == "/dev/null"
        running.terminate()
        assert running.wait(PATIENCE) == 0
    assert volume.read_bytes()[:4096] == noise(1)
    assert not os.path.exists(socket)
