"""What reads of an image cost where much is compressed together, against the peer, which has 32 KiB together."""

from __future__ import annotations

from collections.abc import Iterator

from bench.block import fio
from bench.block.disks import NbdkitZstd
from bench.block.figures.random_pages import load
from bench.block.fio import Job
from bench.block.setting import Setting, compared, sides
from bench.lib.corpus import PAGE
from bench.lib.figures import Figure

_WAYS = (("lz4hc", 64 << 10), ("lz4hc", 256 << 10), ("zstd:9", 256 << 10))


def reads(setting: Setting) -> Iterator[Figure]:
    """4 KiB at random places, which unpack a block each; 4 KiB after 4 KiB, of one unpacked; and 1 MiB after 1 MiB."""
    size = setting.image.size
    for codec, block in _WAYS:
        with sides(NbdkitZstd, size, codec, block) as both:
            load(setting, both)
            for name, job in (
                ("random.depth1", Job("randread", PAGE, 1, size, setting.seconds)),
                ("neighbours.depth1", Job("read", PAGE, 1, size, setting.seconds)),
                ("sequential", Job("read", 1 << 20, 4, size, setting.seconds)),
            ):
                figure = f"blocks.{codec}.{block >> 10}k.read.{name}"
                yield from compared(
                    setting, both, figure, job, setting.image.what, lambda disk, job: fio.run(disk.uri, job)
                )
