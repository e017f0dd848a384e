"""Pages to measure with: shared libraries, heaps of live processes, and a mix with pages that are easy and hard.

`python -m bench.lib.corpus` makes them in `.bench/`. Libraries and mix are the same bytes in every run on a machine;
heaps are what the processes happened to hold when they were read, and are then kept.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.lib import ending
from bench.lib.live import LiveProcess

PAGE = 4096
CACHE = Path(__file__).resolve().parents[2] / ".bench"
MEGABYTES = 200
QUICK_MEGABYTES = 24

_LIBRARY_ROOTS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
_SEED = 42


@dataclass(frozen=True)
class Corpus:
    """A file of pages."""

    name: str
    path: Path

    @property
    def pages(self) -> int:
        """How many there are."""
        return self.path.stat().st_size // PAGE

    def describe(self) -> dict[str, str | int]:
        """Its name, what it is, and how large."""
        return {"name": self.name, "what": _MAKERS[self.name][1], "pages": self.pages}


def libraries(limit: int) -> Iterator[bytes]:
    """Whole pages of this machine's shared libraries, in the order of their paths, up to `limit` bytes."""
    for path in library_files():
        data = path.read_bytes()
        data = data[: min(limit, len(data)) // PAGE * PAGE]
        limit -= len(data)
        yield data
        if limit < PAGE:
            return


def library_files() -> Iterator[Path]:
    """Shared libraries of this machine, each once."""
    seen = set()
    for root in map(Path, _LIBRARY_ROOTS):
        for path in sorted(root.rglob("*.so*")):
            real = path.resolve()
            if real not in seen and real.is_file() and os.access(real, os.R_OK) and _is_elf(real):
                seen.add(real)
                yield real


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def heaps(limit: int) -> Iterator[bytes]:
    """Resident anonymous pages of live Python processes, each with other work, up to `limit` bytes."""
    kinds = LiveProcess.KINDS
    each = limit // len(kinds) // PAGE * PAGE
    for kind in kinds:
        with LiveProcess(kind, each) as process:
            yield from process.pages(each)


def mix(limit: int) -> Iterator[bytes]:
    """The libraries, with a tenth of the pages same-filled (half of those zeros) and a tenth incompressible."""
    rng = random.Random(_SEED)
    for data in libraries(limit):
        pages = bytearray(data)
        for at in range(0, len(pages), PAGE):
            pages[at : at + PAGE] = _mixed(rng, pages[at : at + PAGE])
        yield bytes(pages)


def _mixed(rng: random.Random, page: bytes | bytearray) -> bytes | bytearray:
    choice = rng.random()
    if choice < 0.05:
        return bytes(PAGE)
    if choice < 0.1:
        return struct.pack("<Q", rng.getrandbits(64)) * (PAGE // 8)
    if choice < 0.2:
        return rng.randbytes(PAGE)
    return page


_MAKERS: dict[str, tuple[Callable[[int], Iterator[bytes]], str]] = {
    "libraries": (libraries, "bytes of this machine's shared libraries"),
    "heaps": (heaps, "anonymous memory of live Python processes"),
    "mix": (mix, "libraries with 10 % same-filled and 10 % incompressible pages"),
}
NAMES = tuple(_MAKERS)


def make(name: str, megabytes: int, cache: Path = CACHE) -> Corpus:
    """The corpus of that name of about `megabytes` MB, made if it is not in the cache yet."""
    path = cache / str(megabytes) / f"{name}.pages"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.writelines(_MAKERS[name][0](megabytes * 1_000_000))
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    return Corpus(name, path)


def main() -> int:
    """Make the corpora and say where they are."""
    parser = argparse.ArgumentParser(prog="python -m bench.lib.corpus", description="Make the corpora.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MEGABYTES} MB each, not {MEGABYTES}")
    megabytes = QUICK_MEGABYTES if parser.parse_args().quick else MEGABYTES
    for name in NAMES:
        corpus = make(name, megabytes)
        sys.stdout.write(f"{corpus.path}: {corpus.pages:,} pages, {_MAKERS[name][1]}\n")
    return 0


if __name__ == "__main__":
    ending.run(main)
