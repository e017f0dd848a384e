"""A gateway of ours in front of a SAN, at a Unix socket of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.block.disks import Disk, NbdDaemon

POOL = "san"


class Gateway(Disk):
    """`tmem san` between the host and the volume of a SAN, with the pool of a daemon as its cache."""

    name = "tmem san"
    program = sys.executable

    def __init__(self, backing: str, daemon: NbdDaemon, state: Path, *flags: str) -> None:
        super().__init__()
        self._state = state
        self._arguments = [
            *(
                "san",
                "--backing",
                backing,
                "--server",
                f"unix:{daemon.socket}",
                "--pool",
                POOL,
                "--listen",
                f"unix:{self.socket}",
            ),
            *("--state", str(state), *flags),
        ]

    def command(self) -> list[str]:
        return ["env", f"TMEM_SAN_HOST_STATE={self._state}", sys.executable, "-m", "tmem.cli", *self._arguments]
