"""What was acknowledged survives: the server is killed with -9 in the midst of writes, and its clients find their data.

`TMEM_KILLS` is how often it is killed (30).
"""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd, Err
from tests.block.lib.servers import NAME
from tests.block.lib.stream import EndedError
from tests.lib.command import Command
from tests.lib.daemon import Daemon
from tests.lib.retry import eventually
from tests.lib.support import noise, page

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("TMEM_KILLS", "30"))
PAGE = 4096
PAGES = 512
WRITERS = 2
DEPTH = 16


class Writer(threading.Thread):
    """Writes its own pages, many at once, until the server is gone; knows what it was told is kept."""

    def __init__(self, address: str, which: int, kept: dict[int, bytes], seed: int) -> None:
        super().__init__()
        self._address, self._which, self._kept = address, which, kept
        self._dice = random.Random(f"{seed}/{which}")
        self.doubt: dict[int, bytes] = {}
        self.acknowledged = 0
        self.wrong: object = None

    def run(self) -> None:
        try:
            with opened(self._address, NAME) as client:
                while not self.wrong:
                    indices = self._dice.sample(range(self._which, PAGES, WRITERS), DEPTH)
                    self.doubt = {index: self._data() for index in indices}
                    cookies = {index: client.submit(*_command(index, data)) for index, data in self.doubt.items()}
                    for index, cookie in cookies.items():
                        answer = client.answer(cookie)
                        if answer.error != Err.OK:
                            self.wrong = answer
                            return
                        self._kept[index] = self.doubt.pop(index)
                        self.acknowledged += 1
        except EndedError:
            pass

    def _data(self) -> bytes:
        seed = self._dice.randrange(1 << 20)
        return self._dice.choice((page(seed), page(seed), noise(seed), bytes(PAGE)))


def _command(index: int, data: bytes) -> tuple[Cmd, int, int, int, bytes]:
    if any(data):
        return Cmd.WRITE, index * PAGE, PAGE, 0, data
    return Cmd.WRITE_ZEROES, index * PAGE, PAGE, 0, b""


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    address, kept, dice = f"unix:{tmp_path}/sock", dict.fromkeys(range(PAGES), bytes(PAGE)), random.Random(1)
    flags = (f"--nbd={address}", f"--arena={tmp_path}/arena")
    running = Daemon(*flags)
    try:
        Command(running.address)("export", "create", NAME, "--size", PAGES * PAGE, "--multi-conn")
        for kill in range(KILLS):
            writers = [Writer(address, which, kept, kill) for which in range(WRITERS)]
            for writer in writers:
                writer.start()
            _wait(writers, dice.randrange(1, 600))
            running.kill()
            for writer in writers:
                writer.join()
                assert writer.wrong is None, writer.wrong
            running = Daemon(*flags)
            _look(address, kept, {index: data for writer in writers for index, data in writer.doubt.items()}, kill)
    finally:
        running.kill()


def _wait(writers: list[Writer], acknowledged: int) -> None:
    eventually(lambda: sum(writer.acknowledged for writer in writers) >= acknowledged)


def _look(address: str, kept: dict[int, bytes], doubt: dict[int, bytes], kill: int) -> None:
    """Every page is as it was acknowledged; one that was on its way is whole, be it old or new."""
    with opened(address, NAME) as client:
        disk = client.read(0, PAGES * PAGE)
    for index in range(PAGES):
        found = disk[index * PAGE : (index + 1) * PAGE]
        assert found in (kept[index], doubt.get(index, kept[index])), f"page {index} after kill {kill}"
        kept[index] = found
