"""A host that reads files of slow storage, with a cache that it shares with other hosts, as kernels did by cleancache.

A process of its own: `python -m bench.demo.reader ADDRESS FILE...`. Told a number of hundredths it reads all
pages of the files, beginning after so many of them. A page that the cache does not have is read from the file and put.
While the daemon is away it waits; another host would tell `tmem.connect` to go on with its storage.
"""

from __future__ import annotations

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import tmem
from bench.lib.child import obey

PAGE = 4096
_FILE_SYSTEM = uuid.UUID("5d2e3b0a-6f8e-4c43-9a2f-0d2b7f4f9a11")
_THREADS = 2


@dataclass
class Read:
    """Pages asked for, where they came from, and how many that the cache gave were not the file's."""

    asked: int = 0
    cached: int = 0
    storage: int = 0
    wrong: int = 0


class _File:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        about = os.fstat(self._descriptor)
        self.pages = about.st_size // PAGE
        self.key = b"".join(number.to_bytes(8, "big") for number in (about.st_dev, about.st_ino, about.st_mtime_ns))

    def read(self, index: int) -> bytes:
        return os.pread(self._descriptor, PAGE, index * PAGE)


class _Host:
    def __init__(self, address: str, paths: list[str]) -> None:
        self._cache = tmem.Cleancache(tmem.connect(address, timeout=20))
        self._fs = self._cache.init_shared_fs(_FILE_SYSTEM)
        self._files = [_File(path) for path in paths]

    def read(self, skip: int) -> Read:
        """Every page once."""
        places = [(file, index) for file in self._files for index in range(file.pages)]
        turn = len(places) * skip // 100
        with ThreadPoolExecutor(_THREADS) as threads:
            verdicts = list(threads.map(self._page, places[turn:] + places[:turn]))
        return Read(len(places), verdicts.count("cached"), verdicts.count("storage"), verdicts.count("wrong"))

    def _page(self, place: tuple[_File, int]) -> str:
        file, index = place
        page = self._cache.get_page(self._fs, file.key, index)
        if page is None:
            self._cache.put_page(self._fs, file.key, index, file.read(index))
            return "storage"
        # Only the demo reads here: to prove that the cache is right.
        return "cached" if page == file.read(index) else "wrong"


def _main(address: str, *paths: str) -> None:
    host = _Host(address, list(paths))
    obey(lambda skip: asdict(host.read(skip)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
