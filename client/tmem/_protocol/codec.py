"""LZ4 of whole batches: by the native part where it is installed, else page by page with the `lz4` package.

Both give the same: blocks one after another, of which one as long as a page is the page itself. The native part takes a
third of the time off and gives up the GIL once a batch, so that one batch is compressed while others travel.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

import google_crc32c
import lz4.block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmem._model.checks import Page


class Codec(Protocol):
    """The two ways of a batch."""

    def pack(self, pages: Sequence[Page], page_size: int) -> tuple[list[int], bytes]:
        """The length of each block, and the blocks."""

    def unpack(self, blob: bytes, lengths: list[int], checksums: list[int], page_size: int) -> Sequence[bytes | None]:
        """The pages of blocks whose lengths make up the blob; None for one that does not have its checksum."""


class PageByPage:
    """With the packages that any Python has."""

    @staticmethod
    def pack(pages: Sequence[Page], page_size: int) -> tuple[list[int], bytes]:
        compress = lz4.block.compress
        blocks = [compress(page, store_size=False) for page in pages]
        lengths = list(map(len, blocks))
        if lengths and max(lengths) >= page_size:
            blocks = [block if len(block) < page_size else page for block, page in zip(blocks, pages, strict=True)]
            lengths = [min(length, page_size) for length in lengths]
        return lengths, b"".join(blocks)

    @staticmethod
    def unpack(blob: bytes, lengths: list[int], checksums: list[int], page_size: int) -> list[bytes | None]:
        decompress, checksum_of = lz4.block.decompress, google_crc32c.value
        pages: list[bytes | None] = []
        start = 0
        for length, checksum in zip(lengths, checksums, strict=True):
            page = blob[start : start + length]
            start += length
            if length != page_size:
                try:
                    page = decompress(page, uncompressed_size=page_size)
                except (lz4.block.LZ4BlockError, ValueError):
                    page = b""
            sound = len(page) == page_size and checksum_of(page) == checksum
            pages.append(page if sound else None)
        return pages


@cache
def codec() -> Codec:
    """The quickest there is."""
    try:
        import tmem_engine
    except ImportError:
        return PageByPage()
    return tmem_engine
