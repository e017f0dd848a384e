"""The pages that are sent: a corpus, repeated as often as it takes, no two pages of two rounds the same."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bench.lib.corpus import PAGE, Corpus

_STAMP = struct.Struct("<Q")


@dataclass(frozen=True)
class Pages:
    """The pages of a corpus, numbered without end."""

    name: str
    data: bytes

    @classmethod
    def of(cls, corpus: Corpus) -> Pages:
        """All of a corpus."""
        return cls(corpus.name, corpus.path.read_bytes())

    def page(self, number: int) -> bytes:
        """One page. Those of the first round are the corpus; later ones have eight bytes of their own."""
        turn, at = divmod(number, len(self.data) // PAGE)
        page = self.data[at * PAGE : (at + 1) * PAGE]
        return page[: -_STAMP.size] + _STAMP.pack(number) if turn else page

    def batch(self, first: int, count: int) -> dict[int, bytes]:
        """Pages by their number."""
        return {number: self.page(number) for number in range(first, first + count)}

    def range(self, first: int, count: int) -> bytes:
        """Pages in one piece."""
        return b"".join(self.batch(first, count).values())
