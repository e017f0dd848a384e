"""Users of a gateway who know at every moment what each of their blocks must hold.

A disk is dealt out in blocks: the user `k` of `n` has every n-th. So users go through the same stripes and the same
connections to the cache at once, and each alone knows what is right.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.block.lib.protocol import Cmd, Err, Flag
from tests.block.lib.stream import EndedError
from tests.lib.support import noise, page

if TYPE_CHECKING:
    from tests.block.lib.client import Client
    from tests.block.lib.gateway import Gateway

BLOCK = 16384
PAGE = 4096


@dataclass
class Doubt:
    """A change that may or may not have been made: its gateway died before it answered."""

    offset: int
    new: bytes


class User(threading.Thread):
    """One user of the disk, who works until he is stopped or his gateway is gone."""

    def __init__(self, gateway: Gateway, disk: bytearray, which: int, of: int, seed: str) -> None:
        super().__init__()
        self._gateway, self._disk, self._which, self._of = gateway, disk, which, of
        self._dice = random.Random(seed)
        self._enough = threading.Event()
        self.doubt: Doubt | None = None
        self.wrong: str | None = None
        self.slowest = 0.0
        self.steps = 0

    def enough(self) -> None:
        self._enough.set()
        self.join()

    def run(self) -> None:
        try:
            with self._gateway.client() as client:
                while not self._enough.is_set() and self.wrong is None:
                    start = time.monotonic()
                    self._step(client)
                    self.slowest = max(self.slowest, time.monotonic() - start)
                    self.steps += 1
        except (EndedError, ConnectionError, FileNotFoundError):
            pass
        except Exception as error:
            self.wrong = repr(error)

    def _step(self, client: Client) -> None:
        blocks = len(self._disk) // BLOCK // self._of
        near = self._dice.random() < 0.6
        block = self._dice.randrange(min(blocks, 8) if near else blocks) * self._of + self._which
        length = self._dice.choice((PAGE, PAGE, PAGE, BLOCK, 512, self._dice.randrange(1, BLOCK)))
        places = (0, (BLOCK - length) // PAGE * PAGE, self._dice.randrange(BLOCK - length + 1))
        offset = block * BLOCK + self._dice.choice(places)
        kind = self._dice.choice((Cmd.READ,) * 6 + (Cmd.WRITE, Cmd.WRITE, Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES))
        match kind:
            case Cmd.READ:
                self._read(client, offset, length)
            case Cmd.WRITE:
                seed = self._dice.randrange(1 << 30)
                data = (page(seed) + noise(seed) + bytes(2 * PAGE))[:length]
                self._change(client, kind, offset, data, self._dice.choice((0, Flag.FUA)))
            case Cmd.WRITE_ZEROES:
                self._change(client, kind, offset, bytes(length), 0)
            case Cmd.TRIM:
                self._trim(client, offset, length)

    def _read(self, client: Client, offset: int, length: int) -> None:
        read = client.read(offset, length)
        if read != self._disk[offset : offset + length]:
            at = next(at for at in range(length) if read[at] != self._disk[offset + at])
            self.wrong = (
                f"user {self._which}, step {self.steps}: stale byte {offset + at}, read of {length} from {offset}"
            )

    def _change(self, client: Client, kind: Cmd, offset: int, data: bytes, flags: int) -> None:
        self.doubt = Doubt(offset, data)
        answer = client.command(kind, offset, len(data), flags, data if kind == Cmd.WRITE else b"")
        if answer.error != Err.OK:
            self.wrong = f"user {self._which}, step {self.steps}: {kind!r} answered {answer}"
            return
        self._disk[offset : offset + len(data)] = data
        self.doubt = None

    def _trim(self, client: Client, offset: int, length: int) -> None:
        """What is trimmed may read as it did or as zeros, but it may not change by itself."""
        self.doubt = Doubt(offset, bytes(length))
        client.command(Cmd.TRIM, offset, length)
        read = client.read(offset, length)
        self.wrong = self.wrong or settle(self._disk, self.doubt, read)
        self.doubt = None


def settle(disk: bytearray, doubt: Doubt, read: bytes) -> str | None:
    """What is wrong with bytes in doubt: each is as it was or as it was to be. From now on it is what was read."""
    for at, byte in enumerate(read):
        if byte not in (disk[doubt.offset + at], doubt.new[at]):
            return f"byte {doubt.offset + at} is neither old nor new"
    disk[doubt.offset : doubt.offset + len(read)] = read
    return None
