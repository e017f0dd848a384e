"""A slow SAN with one volume: nbdkit with its delay filter, or the project's own stand-in where nbdkit is absent."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.block.disks import Disk

DELAY = 0.001
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class Served:
    """What a SAN has been asked for."""

    reads: int
    read_bytes: float


class San(Disk):
    """Each read takes a millisecond at least, however many there are at once."""

    name = "SAN"
    program = sys.executable

    def __init__(self, image: Path, *, stand_in: bool = False) -> None:
        super().__init__()
        self._image = image
        self._counts = Path(self._home.name) / "counts"
        self._nbdkit = None if stand_in else shutil.which("nbdkit")

    @property
    def what(self) -> str:
        """Which of the two it is."""
        return "nbdkit --filter=delay" if self._nbdkit else "the stand-in for a SAN"

    def command(self) -> list[str]:
        if self._nbdkit is None:
            slow = [sys.executable, "-m", "bench.block.san.slow"]
            return [*slow, str(self.socket), str(self._image), str(DELAY), str(self._counts)]
        return [
            *(self._nbdkit, "--foreground", "--unix", str(self.socket), "--filter=stats", "--filter=delay", "file"),
            *(str(self._image), f"rdelay={DELAY * 1000:.0f}ms", f"statsfile={self._counts}"),
        ]

    def served(self) -> Served:
        """All that it has served; this ends it."""
        self.stop()
        text = self._counts.read_text()
        if self._nbdkit is None:
            counts = json.loads(text)
            return Served(counts["reads"], counts["read_bytes"])
        found = re.search(r"^read: (\d+) ops, \S+ s, (\S+) (\w+)", text, re.M)
        return Served(int(found[1]), float(found[2]) * _UNITS[found[3]]) if found else Served(0, 0)
