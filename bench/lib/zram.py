"""The same pages in the kernel's zram with lz4, for comparison. Needs root and a zram device that nobody uses."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

PAGE = 4096
_DEVICE = Path("/dev/zram0")
_SETTINGS = Path("/sys/block/zram0")
_PIECE = 256 * PAGE


class NoZramError(Exception):
    """There is no zram to compare with; the message says why."""


def memory_for(pages: Iterable[bytes]) -> int:
    """Bytes of memory that zram takes for the pages.

    Raises:
        NoZramError: There is no zram device, somebody uses it, or it may not be used.
    """
    with _device() as device, mmap.mmap(-1, _PIECE) as aligned:
        for piece in _pieces(pages):
            aligned[: len(piece)] = piece
            with memoryview(aligned)[: len(piece)] as view:
                os.write(device, view)
        os.fsync(device)
        return int((_SETTINGS / "mm_stat").read_text().split()[2])


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for at in range(0, len(block), _PIECE):
            yield block[at : at + _PIECE]


@contextlib.contextmanager
def _device() -> Iterator[int]:
    """The device, open for writing past the page cache; afterwards as it was."""
    if not _DEVICE.is_block_device():
        raise NoZramError(f"there is no {_DEVICE}")
    if not os.access(_DEVICE, os.W_OK):
        raise NoZramError(f"{_DEVICE} takes root to use")
    if (_SETTINGS / "initstate").read_text().strip() != "0":
        raise NoZramError(f"{_DEVICE} is in use")
    algorithms = (_SETTINGS / "comp_algorithm").read_text()
    before = algorithms.partition("[")[2].partition("]")[0]
    try:
        (_SETTINGS / "comp_algorithm").write_text("lz4")
        (_SETTINGS / "disksize").write_text("8G")
    except OSError as error:
        raise NoZramError(f"{_DEVICE} cannot be set up: {error.strerror}") from error
    try:
        device = os.open(_DEVICE, os.O_WRONLY | os.O_DIRECT)
        try:
            yield device
        finally:
            os.close(device)
    finally:
        (_SETTINGS / "reset").write_text("1")
        (_SETTINGS / "comp_algorithm").write_text(before)
