"""A process that puts and flushes pages of a pool all the time, round by round: `busy_writer SERVER POOL FILE`.

In round `n` each page of each object is put anew, saying so, or flushed, as `flushed` tells. FILE is shared memory
of two u64: the round that was begun last, and the round that was done last.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import sys
from pathlib import Path

import tmem
from tests.lib.support import page

OBJECTS, PAGES = 60, 20
_PLACE = struct.Struct("QII")


def flushed(turn: int, number: int, index: int) -> bool:
    """Whether a round flushes a page."""
    return (turn * 7 + number * 3 + index) % 5 == 0


def round_of(data: bytes, number: int, index: int) -> int:
    """The round that put a page, which must be the page of this place and whole."""
    turn, *place = _PLACE.unpack_from(data)
    assert place == [number, index]
    assert data == _page(turn, number, index)
    return int(turn)


def _page(turn: int, number: int, index: int) -> bytes:
    return _PLACE.pack(turn, number, index) + page((turn + index) % 1000)[_PLACE.size :]


def main() -> None:
    """Write until killed."""
    server, name, file = sys.argv[1:]
    with tmem.connect(server) as store, Path(file).open("r+b") as handle, mmap.mmap(handle.fileno(), 16) as shared:
        pool = store.find_pool(name)
        for turn in itertools.count(1):
            shared[:8] = struct.pack("Q", turn)
            for number in range(OBJECTS):
                gone = [index for index in range(PAGES) if flushed(turn, number, index)]
                pool.put(100 + number, {at: _page(turn, number, at) for at in range(PAGES) if at not in gone})
                pool.flush(100 + number, gone)
            shared[8:] = struct.pack("Q", turn)


if __name__ == "__main__":
    main()
