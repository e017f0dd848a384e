"""The units that save a store every night: systemd accepts them, and their command does it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tmem
from tests.lib.daemon import daemon
from tests.lib.support import run

DEPLOY = Path(__file__).parents[3] / "deploy"
SERVICE = (DEPLOY / "tmem-save.service").read_text()
COMMAND = re.search(r"^ExecStart=(.*)$", SERVICE, re.MULTILINE)


def test_the_command_of_the_unit_saves_the_store_and_keeps_so_many(tmp_path: Path) -> None:
    assert COMMAND is not None
    tool, *arguments = shlex.split(COMMAND[1])
    assert tool == "/opt/tmem/bin/tmem"
    given = [argument.replace("${STATE_DIRECTORY}", str(tmp_path)) for argument in arguments]
    with daemon("--memory", "16MiB") as running, tmem.connect(running.address) as store:
        store.pool("swap").put_range(1, 0, run(0, 10))
        environment = {**os.environ, "TMEM_SERVER": running.address}
        for _ in range(8):
            subprocess.run([sys.executable, "-m", "tmem.cli", *given], env=environment, check=True, capture_output=True)
    assert len(list(tmp_path.glob("*/swap.tmem"))) == 7


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units_and_finds_the_service_tight(tmp_path: Path) -> None:
    (tmp_path / "tmem-save.service").write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", SERVICE))
    (tmp_path / "tmem-save.timer").write_text((DEPLOY / "tmem-save.timer").read_text())
    verify = ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    rate = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(tmp_path / "tmem-save.service")]
    rated = subprocess.run(rate, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout
