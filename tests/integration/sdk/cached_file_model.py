"""A file that one process changes while others read it through a store: who may have read what.

The changes follow from a seed, so that every process knows the file after each of them. The writer announces a change
before it begins (`begun`) and when it is done (`done`); a read may give, block by block, what the file was after any
change from the last that was done when the read began to the last that had begun when it ended.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import TypeAlias

import tmem
from tests.lib.support import PATIENCE

BLOCK = 4096
MOST_BLOCKS = 24
SETTLE = 0.05

Counter: TypeAlias = "Synchronized[int]"


class History:
    """The file after each change: its bytes, and how often its name was given to another file."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._states: list[tuple[bytes, int]] = [(_stamped(0, 0, MOST_BLOCKS), 0)]
        self.changes: list[tuple[str, int, bytes]] = [("replace", 0, self._states[0][0])]

    def state(self, number: int) -> tuple[bytes, int]:
        while len(self._states) <= number:
            self._step(len(self._states))
        return self._states[number]

    def _step(self, number: int) -> None:
        content, files = self._states[-1]
        kind = self._rng.choice(["write", "write", "write", "truncate", "append", "replace"])
        first = self._rng.randrange(MOST_BLOCKS)
        data = b""
        if kind == "write":
            blocks = max(1, len(content) // BLOCK)
            first %= blocks
            data = _stamped(number, first, self._rng.randint(1, blocks - first))
        elif kind == "append":
            data = _stamped(number, first, 3)[: self._rng.randint(1, 3 * BLOCK)]
            data = data[: max(0, MOST_BLOCKS * BLOCK - len(content))]
        elif kind == "replace":
            data = _stamped(number, 0, self._rng.randint(1, MOST_BLOCKS))
            files += 1
        after = {
            "write": content[: first * BLOCK] + data + content[first * BLOCK + len(data) :],
            "truncate": content[: first * BLOCK + 100],
            "append": content + data,
            "replace": data,
        }[kind]
        self.changes.append((kind, first, data))
        self._states.append((after, files))


def write(path: str, seed: int, rounds: int, begun: Counter, done: Counter, hits: Counter) -> None:
    """Change the file, a few times at once; then go on as soon as readers have hit its rested pages."""
    history = History(seed)
    rng = random.Random(seed + 1)
    number = 0
    for _ in range(rounds):
        for _ in range(rng.randint(1, 4)):
            number += 1
            history.state(number)
            begun.value = number
            _change(Path(path), *history.changes[number])
            done.value = number
        seen, end = hits.value, time.monotonic() + PATIENCE
        while hits.value < seen + 20:
            assert time.monotonic() < end, "no reader has hit a page since the last change"
            time.sleep(0.001)
    done.value = begun.value = -1


def read(path: str, arena: str, seed: int, begun: Counter, done: Counter, hits: Counter) -> None:
    """Read at random places, one handle after another, and say where a read is not what it may be."""
    rng = random.Random(os.getpid())
    history = History(seed)
    with tmem.connect(f"shm://{arena}") as store:
        while done.value >= 0:
            opened_from = done.value
            with tmem.open_cached(path, store=store, settle=SETTLE, readahead="64KiB") as file:
                opened_to = begun.value
                if opened_to < 0 or history.state(opened_from)[1] != history.state(opened_to)[1]:
                    continue
                for _ in range(rng.randint(1, 60)):
                    if not _read_once(file, rng, history, history.state(opened_to)[1], begun, done):
                        break
                with hits.get_lock():
                    hits.value += file.stats().pages_hit


def _read_once(
    file: tmem.CachedFile, rng: random.Random, history: History, which: int, begun: Counter, done: Counter
) -> bool:
    offset, size = rng.randrange(MOST_BLOCKS) * BLOCK, rng.randint(1, 6 * BLOCK)
    first = done.value
    found = file.read_at(offset, size)
    last = begun.value
    if first < 0 or last < 0:
        return False
    states = list(_of_file(history, which, first, last))
    for at in range(0, size, BLOCK):
        end = offset + min(at + BLOCK, size)
        block = found[at : end - offset]
        # As in any read, each block may be of another moment, and so may be where the file ends: a write that makes it
        # longer shows its bytes before its end.
        there = [content[offset + at : end] for content in states]
        what = f"{len(block)} bytes at {offset + at}, {block[:16]!r}, in changes {first} to {last}"
        assert any(it.startswith(block) for it in there), what
        assert len(block) in map(len, there), what
        if len(block) < end - offset - at:
            assert len(found) == at + len(block)
            break
    return True


def _of_file(history: History, which: int, first: int, last: int) -> Iterator[bytes]:
    """What the file of that turn was from one change to another; what replaced it is another file."""
    for number in count(first, -1):
        content, turn = history.state(number)
        if turn <= which:
            break
    yield content
    for number in range(first, last + 1):
        content, turn = history.state(number)
        if turn == which:
            yield content


def _change(path: Path, kind: str, first: int, data: bytes) -> None:
    if kind == "replace":
        other = path.with_suffix(".new")
        other.write_bytes(data)
        other.rename(path)
        return
    with path.open("r+b", buffering=0) as file:
        if kind == "truncate":
            if os.fstat(file.fileno()).st_size > first * BLOCK + 100:
                file.truncate(first * BLOCK + 100)
            return
        file.seek(first * BLOCK if kind == "write" else os.fstat(file.fileno()).st_size)
        assert file.write(data) == len(data)


def _stamped(number: int, first: int, blocks: int) -> bytes:
    """Blocks that say which change wrote them, and where."""
    return b"".join(struct.pack("<QQ", number, first + at) * (BLOCK // 16) for at in range(blocks))
