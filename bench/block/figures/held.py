"""How many bytes of a file system a byte of the server's resident memory holds, everything counted.

By codec, with the pages of 4 KiB that a swap device has, and with blocks of 256 KiB for images. The image is as large
as those that a server is used for, so that what the daemon has of its own weighs as it does in use.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from bench.block import image
from bench.block.disks import NbdkitZstd, TmemExport
from bench.block.image import Image
from bench.block.setting import AnyDisk, Setting, against
from bench.block.wire import Connection
from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.rpc.setting import say

_BLOCK = 256 << 10
_WAYS = {
    "held.pages.lz4": ("lz4", PAGE),
    "held.pages.zstd:1": ("zstd:1", PAGE),
    "held.blocks.lz4hc": ("lz4hc", _BLOCK),
    "held.blocks.zstd:9": ("zstd:9", _BLOCK),
    "held.blocks.zstd:14": ("zstd:14", _BLOCK),
}
_MIB = 4096
_QUICK_MIB = 128
_CONNECTIONS = 2
"""That fill a disk at once: packing is what takes the time."""
_CHECKED = 64
"""Every so many pieces are read back."""
_TOLD_EVERY = 15.0
_PATIENCE = 600.0


def measure(setting: Setting) -> Iterator[Figure]:
    """The same image in each, once: memory does not vary from run to run as time does."""
    whole = image.make(_QUICK_MIB) if setting.quick else image.make_whole(_MIB)
    say(f"  {whole.what}, {whole.size >> 20} MiB")
    found: dict[str, list[float]] = {}
    if (reason := NbdkitZstd.missing()) is None:
        with NbdkitZstd(whole.size) as peer:
            found[peer.name] = [_held(whole, peer)]
    else:
        say(f"{NbdkitZstd.name}: skipped, {reason}")
    for name, (codec, block) in _WAYS.items():
        with TmemExport(whole.size, codec, block=block) as ours:
            found[ours.name] = [_held(whole, ours)]
        yield from against(name, "bytes/byte resident", found, ours.name, NbdkitZstd.name, whole.what)


def _held(whole: Image, disk: AnyDisk) -> float:
    say(f"  filling {disk.name}")
    begun = time.monotonic()
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        shares = [pool.submit(_fill, whole, disk, share) for share in range(_CONNECTIONS)]
        given = sum(share.result() for share in shares)
    _check(whole, disk)
    resident = disk.resident_bytes()
    say(f"  {given >> 20} MiB in {resident >> 20} MiB after {time.monotonic() - begun:.0f} s")
    return given / resident


def _fill(whole: Image, disk: AnyDisk, share: int) -> int:
    """Write every other piece; how many bytes they have."""
    given, told = 0, time.monotonic()

    def pieces() -> Iterator[tuple[int, bytes]]:
        nonlocal given, told
        for offset, piece in islice(whole.pieces(), share, None, _CONNECTIONS):
            given += len(piece)
            if share == 0 and time.monotonic() > told + _TOLD_EVERY:
                told = time.monotonic()
                say(f"    {offset * 100 // whole.size} %")
            yield offset, piece

    with Connection(str(disk.socket), disk.export, _PATIENCE) as connection:
        connection.write_all(pieces())
    return given


def _check(whole: Image, disk: AnyDisk) -> None:
    with Connection(str(disk.socket), disk.export, _PATIENCE) as connection:
        for offset, piece in islice(whole.pieces(), 0, None, _CHECKED):
            if connection.read(offset, len(piece)) != piece:
                raise RuntimeError(f"{disk.name} does not give back what it was given at {offset}")
