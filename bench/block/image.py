"""A file system of real files: an ext4 image of this machine's libraries, or of `/usr`. Made once, kept in `.bench/`.

Where `mke2fs` is absent the same files stand one after the other, each at a page's start, as they lie in a file system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lib import corpus
from bench.lib.corpus import PAGE

PIECE = 1 << 20
_FILLED = 0.85
_STEP = 256
"""MiB by which an image is made larger."""
_WHAT = {"libraries": "libraries", "usr": "libraries and the rest of /usr"}
_ZEROS = bytes(PAGE)


@dataclass(frozen=True)
class Image:
    """A file of a whole number of MiB."""

    path: Path
    what: str

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    def describe(self) -> dict[str, str | int]:
        """What it is, and how large."""
        return {"what": self.what, "mib": self.size >> 20}

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """All of it that is not zeros, in pieces of at most 1 MiB, each with its offset."""
        with self.path.open("rb") as file:
            for offset in range(0, self.size, PIECE):
                piece = file.read(PIECE)
                if piece.count(0) != len(piece):
                    yield offset, piece

    def pages(self, limit: int) -> bytes:
        """Its first pages that are not zeros, up to `limit` bytes."""
        found: list[bytes] = []
        for _, piece in self.pieces():
            found += (page for at in range(0, len(piece), PAGE) if (page := piece[at : at + PAGE]) != _ZEROS)
            if len(found) * PAGE >= limit:
                break
        return b"".join(found[: limit // PAGE])


def make(megabytes: int, cache: Path = corpus.CACHE) -> Image:
    """The image of so many MiB, of libraries."""
    return _made(megabytes, "libraries", list(corpus.library_files()), cache)


def make_whole(megabytes: int, cache: Path = corpus.CACHE) -> Image:
    """An image of so many MiB, of libraries and then of whatever `/usr` holds; smaller where that is less."""
    files = _whole()
    found = sum(path.stat().st_size for path in files)
    needed = int(found / _FILLED) + (_STEP << 20) >> 20
    return _made(min(megabytes, needed // _STEP * _STEP), "usr", files, cache)


def _made(megabytes: int, of: str, files: Sequence[Path], cache: Path) -> Image:
    ext4 = shutil.which("mke2fs") is not None
    path = cache / f"{megabytes}.{of}.{'ext4' if ext4 else 'files'}.image"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="image-", dir=cache) as name:
            (_ext4 if ext4 else _files)(Path(name), megabytes << 20, files)
            (Path(name) / "image").rename(path)
    return Image(path, f"{'ext4' if ext4 else 'files'} of {_WHAT[of]}")


def _whole() -> list[Path]:
    """Libraries, then all other files of `/usr` that can be read, each once."""
    libraries = list(corpus.library_files())
    seen = set(libraries)
    others = (path for path in sorted(Path("/usr").rglob("*")) if path not in seen)
    return libraries + [path for path in others if _is_plain(path)]


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size > 0 and os.access(path, os.R_OK)


def _chosen(size: int, files: Sequence[Path]) -> Iterator[Path]:
    left = int(size * _FILLED)
    for path in files:
        if path.stat().st_size <= left:
            left -= path.stat().st_size
            yield path


def _ext4(home: Path, size: int, files: Sequence[Path]) -> None:
    tree = home / "tree"
    for path in _chosen(size, files):
        place = tree / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(home / "image"), f"{size >> 10}k"]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)


def _files(home: Path, size: int, files: Sequence[Path]) -> None:
    with (home / "image").open("wb") as image:
        for path in _chosen(size, files):
            data = path.read_bytes()
            image.write(data + bytes(-len(data) % PAGE))
        os.truncate(image.fileno(), size)
