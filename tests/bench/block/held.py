"""How many bytes of a file system a byte of the server's resident memory holds, everything counted.

By codec, with the pages of 4 KiB that a swap device has, and with blocks of 64 KiB for images.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.block.disks import NbdkitZstd, TmemExport
from tests.bench.block.setting import AnyDisk, Setting, against
from tests.bench.block.wire import Connection
from tests.bench.corpus import PAGE
from tests.bench.figures import Figure
from tests.bench.rpc.setting import say

_BLOCK = 64 << 10
_WAYS = {
    "held.pages.lz4": ("lz4", PAGE),
    "held.pages.zstd:1": ("zstd:1", PAGE),
    "held.blocks.lz4": ("lz4", _BLOCK),
    "held.blocks.lz4hc": ("lz4hc", _BLOCK),
    "held.blocks.zstd:3": ("zstd:3", _BLOCK),
    "held.blocks.zstd:9": ("zstd:9", _BLOCK),
}


def measure(setting: Setting) -> Iterator[Figure]:
    """The same image in each, once: memory does not vary from run to run as time does."""
    found: dict[str, list[float]] = {}
    if (reason := NbdkitZstd.missing()) is None:
        with NbdkitZstd(setting.large.size) as peer:
            found[peer.name] = [_held(setting, peer)]
    else:
        say(f"{NbdkitZstd.name}: skipped, {reason}")
    for name, (codec, block) in _WAYS.items():
        with TmemExport(setting.large.size, codec, block=block) as ours:
            found[ours.name] = [_held(setting, ours)]
        yield from against(name, "bytes/byte resident", found, ours.name, NbdkitZstd.name, setting.large.what)


def _held(setting: Setting, disk: AnyDisk) -> float:
    say(f"  filling {disk.name}")
    given = 0
    with Connection(str(disk.socket), disk.export) as connection:
        connection.write_all(setting.large.pieces())
        for offset, piece in setting.large.pieces():
            given += len(piece)
            if offset % (64 << 20) == 0 and connection.read(offset, len(piece)) != piece:
                raise RuntimeError(f"{disk.name} does not give back what it was given at {offset}")
    return given / disk.resident_bytes()
