"""A SAN to put a gateway before: a file served by nbdkit, slow if wanted, that keeps a log of what it was asked."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.block.lib import servers
from tests.lib.support import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 20
PAGES = SIZE // 4096


class San:
    """The volume, and what was read of it over the network."""

    def __init__(self, volume: Path, log: Path, address: str) -> None:
        self.volume, self.address = volume, address
        self._log = log
        self._seen = 0

    @property
    def uri(self) -> str:
        return servers.uri(self.address, "")

    def reads(self) -> int:
        """Bytes read since this was last asked."""
        with self._log.open() as log:
            log.seek(self._seen)
            text = log.read()
            self._seen = log.tell()
        return sum(int(length, 0) for length in re.findall(r" Read id=\d+ offset=\w+ count=(\w+)", text))


def fill(volume: Path) -> bytes:
    """Put pages on a volume; they are returned."""
    data = run(0, PAGES // 4) * 4
    volume.write_bytes(data)
    return data


@contextmanager
def san(folder: Path, delay: str = "") -> Iterator[San]:
    """A volume of `SIZE` bytes that answers reads after `delay`, as nbdkit writes times."""
    volume, log = folder / "volume", folder / "san.log"
    fill(volume)
    slow, much = (["--filter=delay"], [f"rdelay={delay}"]) if delay else ([], [])
    arguments = ["--filter=log", *slow, "file", os.fspath(volume), f"logfile={log}", *much]
    with servers.nbdkit(folder, *arguments, name="backing") as (address, _):
        yield San(volume, log, address)
