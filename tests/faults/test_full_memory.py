"""A /dev/shm that is smaller than the daemon's memory: full, it is a refusal, and nobody dies of it."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd, Err
from tests.integration.daemon.test_workers import kill_worker
from tests.lib.daemon import Daemon
from tests.lib.support import PATIENCE, noise

if TYPE_CHECKING:
    from pathlib import Path

    from tests.block.lib.client import Client

FILLER = "/dev/shm/filler"
MOUNT = f'mount -t tmpfs -o size=80m tmpfs /dev/shm && head -c 68m /dev/zero > {FILLER} && exec "$@"'
WITHIN = ["unshare", "--mount", "sh", "-c", MOUNT, "sh"]
MIB = 1 << 20


def _fill(pool: tmem.Pool, oid: int) -> dict[int, bytes]:
    """Put until there is no space; what was stored."""
    kept: dict[int, bytes] = {}
    for index in range(12 * MIB // 4096):
        outcome = pool.put(oid, {index: noise(index)})[index]
        if outcome.reason == "no_space":
            return kept
        assert outcome.stored
        kept[index] = noise(index)
    raise AssertionError("the file system is larger than it should be")


def _fill_disk(disk: Client) -> None:
    for index in range(12 * MIB // 4096):
        error = disk.command(Cmd.WRITE, index * 4096, 4096, data=noise(index)).error
        if error == Err.NOSPC:
            return
        assert not error
    raise AssertionError("the file system is larger than it should be")


def _make_room(running: Daemon) -> None:
    """The others who had filled the file system go."""
    inside = ["nsenter", "--mount", "--target", str(running.process.pid)]
    subprocess.run([*inside, "rm", FILLER], check=True, timeout=PATIENCE)


def test_a_full_file_system_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run([*WITHIN, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a tmpfs of its own")
    nbd = f"unix:{tmp_path}/nbd.sock"
    running = Daemon("--workers=2", f"--nbd={nbd}", "--arena=/dev/shm/arena", memory="64MiB", within=WITHIN)
    try:
        with tmem.connect(running.address) as store:
            store.create_export("disk", 64 * MIB)
            pool = store.pool("pool")
            kept = _fill(pool, 1)
            with opened(nbd, "disk") as disk:
                _fill_disk(disk)
            with urllib.request.urlopen(running.metrics_url, timeout=PATIENCE) as page:
                assert b'reason="no_space"' in page.read()
            kill_worker(running, 1)
            assert pool.get(1, kept) == kept
            assert store.check() == []
            _make_room(running)
            more = {index: noise(index) for index in range(512)}
            assert all(outcome.stored for outcome in pool.put(2, more).values())
            with opened(nbd, "disk") as disk:
                disk.write(0, noise(1))
                assert disk.read(0, 4096) == noise(1)
            assert pool.get(1, kept) == kept
            assert pool.get(2, more) == more
            assert store.check() == []
            assert [worker.replaced for worker in store.workers()] == [0, 1], "nobody else died"
    finally:
        assert running.stop() == 0
