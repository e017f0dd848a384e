"""Live processes whose memory is read: each loads modules of the standard library and does work of one kind.

The child's side is this file run as a script, with the kind and a number of bytes: it works until it holds that much,
says so, and waits until its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

PAGE = 4096
_PRESENT = 1 << 63
_PIECE = 256


class LiveProcess:
    """A child process that holds what work of its kind leaves in memory. Ends with its `with` block."""

    KINDS = ("syntax", "words", "database", "numbers")

    def __init__(self, kind: str, size: int) -> None:
        command = [sys.executable, "-I", __file__, kind, str(size)]
        # Not of this process's group: an interrupt from the terminal is for this process, which ends the child.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def pages(self, limit: int) -> Iterator[bytes]:
        """Its resident anonymous memory, once its work is done, up to `limit` bytes."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("a process whose memory was to be read has ended")
        proc = Path(f"/proc/{self._process.pid}")
        with (proc / "mem").open("rb", 0) as memory, (proc / "pagemap").open("rb", 0) as pagemap:
            for start, count in self._resident(proc, pagemap.fileno()):
                count = min(count, limit // PAGE)
                limit -= count * PAGE
                memory.seek(start)
                yield memory.read(count * PAGE)
                if limit < PAGE:
                    return

    @staticmethod
    def _resident(proc: Path, pagemap: int) -> Iterator[tuple[int, int]]:
        """Runs of resident pages in writable private memory without a file: (address, pages)."""
        for line in (proc / "maps").read_text().splitlines():
            span, flags, _, _, inode, *path = line.split(maxsplit=5)
            if not flags.startswith("rw") or inode != "0" or (path and path[0] != "[heap]"):
                continue
            first, end = (int(address, 16) // PAGE for address in span.split("-"))
            yield from _runs(pagemap, first, end)


def _runs(pagemap: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    entries = memoryview(os.pread(pagemap, (end - first) * 8, first * 8)).cast("Q")
    at = 0
    while at < len(entries):
        count = 0
        while count < _PIECE and at + count < len(entries) and entries[at + count] & _PRESENT:
            count += 1
        if count:
            yield (first + at) * PAGE, count
        at += count or 1


# --- the child's side ---


def _sources() -> Iterator[str]:
    """Every source file of the standard library, for ever."""
    import sysconfig

    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    while True:
        for path in paths:
            if "site-packages" not in path.parts:
                yield path.read_text(errors="replace")


def _syntax() -> Iterator[object]:
    """Syntax trees and code objects, as a type checker holds them."""
    import ast

    for source in _sources():
        try:
            yield ast.parse(source)
            yield compile(source, "source", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue


def _words() -> Iterator[object]:
    """Strings, lists and dictionaries, as a text indexer holds them."""
    import json
    import re

    for source in _sources():
        places: dict[str, list[int]] = {}
        for match in re.finditer(r"\w+", source):
            places.setdefault(match.group(), []).append(match.start())
        yield places
        yield json.dumps(places).encode()


def _database() -> Iterator[object]:
    """A database in memory, with an index."""
    import sqlite3

    database = sqlite3.connect(":memory:")
    database.execute("create table line (file int, number int, text text)")
    database.execute("create index by_text on line (text)")
    for file, source in enumerate(_sources()):
        rows = ((file, number, text) for number, text in enumerate(source.splitlines()))
        database.executemany("insert into line values (?, ?, ?)", rows)
        yield database


def _numbers() -> Iterator[object]:
    """Arrays of measurements, and objects made of them."""
    import array
    import fractions
    import math
    import random

    rng = random.Random(7)
    while True:
        walk = array.array("d", [0.0])
        for _ in range(4096):
            walk.append(round(walk[-1] + rng.gauss(0, 1), 2))
        yield walk
        yield array.array("i", (int(1000 * math.sin(n / 50)) for n in range(8192)))
        yield [fractions.Fraction(n, 1000) for n in range(2000)]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _hold(kind: str, size: int) -> None:
    import asyncio
    import decimal
    import email.message
    import http.client
    import unittest
    import xml.dom.minidom

    work: dict[str, Callable[[], Iterator[object]]] = {
        "syntax": _syntax,
        "words": _words,
        "database": _database,
        "numbers": _numbers,
    }
    held: list[object] = [asyncio, decimal, email.message, http.client, unittest, xml.dom.minidom]
    for item in work[kind]():
        held.append(item)
        if _resident_bytes() > size * 5 // 4 + (16 << 20):
            break
    with contextlib.suppress(BrokenPipeError):  # nobody wants it any more
        os.write(1, b"ready\n")
        os.read(0, 1)


if __name__ == "__main__":
    _hold(sys.argv[1], int(sys.argv[2]))
