"""The wall clock jumps, by an hour or a year and back, under a daemon and its clients: nobody minds."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from tests.block.lib.handshake import opened
from tests.lib.command import Command
from tests.lib.daemon import Daemon
from tests.lib.support import PATIENCE, page

CLOCK = Path(__file__).with_name("clock.c")
HOUR, YEAR = 3600, 365 * 86400
JUMPS = (HOUR, -HOUR, 0, YEAR, 0, -YEAR)
LIMITS = ("--keepalive=2", "--session-idle=600", "--connection-idle=600", "--exchange-idle=600", "--worker-timeout=60")
CLIENT = """
import sys, time, tmem
from tests.lib.support import PATIENCE, page
with tmem.connect(sys.argv[1], timeout=PATIENCE) as store:
    kept, taken = store.pool("kept" + sys.argv[2]), store.pool("taken" + sys.argv[2], kind="ephemeral")
    end, rounds = time.monotonic() + 4, 0
    while time.monotonic() < end or rounds < 20:
        assert kept.put(1, {rounds: page(rounds)})[rounds].stored
        assert kept.get(1, [rounds]) == {rounds: page(rounds)}
        assert all(taken.put(1, {index: page(index) for index in range(300)}).values())
        assert len(taken.get(1, range(300))) == 300
        rounds += 1
    stats = store.client_stats()
    # gRPC has a call end at a time on the wall clock, for the moment between making and sending it.
    assert stats.failed_calls <= 3, stats
    assert stats.reopened == 0, stats
"""


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_a_clock_that_jumps_ends_and_holds_up_nothing(tmp_path: Path, workers: str) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    shim, offset = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", shim, CLOCK, "-ldl"], check=True, timeout=PATIENCE)
    offset.write_bytes(bytes(8))
    under = ["env", f"LD_PRELOAD={shim}", f"TMEM_CLOCK={offset}"]
    told = subprocess.run([*under, "date", "+%Y"], capture_output=True, check=True, timeout=PATIENCE).stdout
    with offset.open("r+b", buffering=0) as clock:
        _jump(clock, YEAR * 2)
        assert subprocess.run([*under, "date", "+%Y"], capture_output=True, check=True).stdout > told, "no clock moved"
        _jump(clock, 0)
        nbd = f"unix:{tmp_path}/nbd.sock"
        running = Daemon(workers, f"--nbd={nbd}", *LIMITS, within=under)
        Command(running.address)("export", "create", "disk", "--size", "1MiB")
        command = [*under, sys.executable, "-c", CLIENT, running.address]
        clients = [subprocess.Popen([*command, str(at)]) for at in range(2)]
        jumps = itertools.cycle(JUMPS)
        with opened(nbd, "disk") as disk:
            for seed in itertools.count():
                if all(client.poll() is not None for client in clients):
                    break
                _jump(clock, next(jumps))
                disk.write(0, page(seed))
                assert disk.read(0, 4096) == page(seed)
                time.sleep(0.05)  # how often it jumps
        assert [client.returncode for client in clients] == [0, 0]
        running.process.terminate()
        _, said = running.process.communicate(timeout=PATIENCE)
    assert running.process.returncode == 0
    assert "died" not in said


def _jump(clock: IO[bytes], seconds: int) -> None:
    clock.seek(0)
    clock.write(struct.pack("q", seconds))
